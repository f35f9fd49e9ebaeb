"""How fast the code is, beside the roofline and installed peers. A first reader can skip it."""
