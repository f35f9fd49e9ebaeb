"""A chat on a terminal: its commands, and responses as they come, thinking in grey, the answer in
bold.

A question is answered on its own: these models know no conversation.
"""

import os
import shlex
from pathlib import Path

from nanoreason.flags import UserError
from nanoreason.pretrained import MODELS, PREFIX

GREY = "\033[90m"
BOLD = "\033[1m"
PLAIN = "\033[0m"
HELP = """\
  /method vote 16     how to answer: greedy, sample, vote, best-of-n, ... and of how many responses
  /think off          answer at once: an empty think block is forced; /think on lets it think
  /model r1-zero      ask another model: one that ships with the code, or a checkpoint or run folder
  /temperature 0.7    of sampling
  /help               this list
  Ctrl-C stops an answer, Ctrl-D ends the chat."""
SWITCH = {"on": "--think", "off": "--no-think"}


def command_flags(line):
    """The flags of sample.py that a command of the chat stands for.

        '/method vote 16'   ->  ['--method=vote', '--n=16']
        '/think off'        ->  ['--no-think']
        '/model r1-zero'    ->  ['--ckpt=pretrained:r1-zero']
        '/model runs/mine'  ->  ['--ckpt=runs/mine'], where there is such a file or folder
        '/temperature 0.7'  ->  ['--temperature=0.7']

    Raises UserError for anything else.
    """
    try:
        name, *values = shlex.split(line)
    except ValueError as error:  # a quotation mark is missing
        raise UserError(f"{line}: {error}") from None
    match name, values:
        case "/method", [method]:
            return [f"--method={method}"]
        case "/method", [method, n]:
            return [f"--method={method}", f"--n={n}"]
        case "/think", ["on" | "off" as state]:
            return [SWITCH[state]]
        case "/model", [model]:
            return [f"--ckpt={model_path(model)}"]
        case "/temperature", [value]:
            return [f"--temperature={value}"]
        case ("/method" | "/think" | "/model" | "/temperature"), _:
            raise UserError(f"{name} takes other words; /help shows which")
    raise UserError(f"there is no command {name}; /help lists them")


def model_path(name):
    """What --ckpt is for the name of a model that ships, or for the path of another, which must be
    there: else UserError."""
    if name in MODELS:
        return PREFIX + name
    if not name.startswith(PREFIX) and not Path(name).exists():
        raise UserError(f"there is no model {name}: no file or folder has that name, and the "
                        f"models that ship are {', '.join(MODELS)}")
    return name


def thinking_text(response):
    """The steps of a Response for people to read, indented."""
    steps = [f"  {step}" for step in response.steps]
    return "\n".join(steps or ["  (answered at once, without thinking)"])


def answer_text(response):
    """The answer of a Response for people to read."""
    if response.answer is None:
        return "No answer: the response was cut off or broke the format."
    return f"Answer: {response.answer}"


class Screen:
    """Where a chat writes. Styles show on terminals only, and not where NO_COLOR is set
    (no-color.org) or the terminal is a dumb one.

    out: a text stream; environ: {name: value} of the environment.
    """

    def __init__(self, out, environ=os.environ):
        self.out = out
        is_plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self.styled = out.isatty() and not is_plain

    def write(self, text, style=""):
        """Write text at once. What moves a cursor or rings a bell is shown as '?': a model may
        write any byte."""
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        if style and self.styled:
            text = f"{style}{text}{PLAIN}"
        self.out.write(text)
        self.out.flush()

    def say(self, text, style=""):
        """Write lines of their own."""
        self.write(text, style)
        self.write("\n")

    def show(self, response):
        """A whole Response."""
        self.say(thinking_text(response), GREY)
        self.say(f"\n{answer_text(response)}", BOLD)


class Stream:
    """A response on a Screen, token by token.

    tokenizer: explains the ids. `add` takes each id as it comes, `end` the Response that they made.
    """

    def __init__(self, screen, tokenizer):
        self.screen = screen
        self.tokenizer = tokenizer
        self.thinks = True  # whether what comes is thinking, and no answer yet
        self.ids = []  # of the thinking, or of the answer
        self.shown = ""  # their text as far as it is on the screen

    def add(self, token):
        """The next id. The bytes of one character may be several tokens: they show together."""
        if token == self.tokenizer.end_think and self.thinks:
            self._answer()
        elif token not in self.tokenizer.specials:
            self.ids.append(token)
            whole = self.tokenizer.decode(self.ids).rstrip("\ufffd")
            self._show(whole[len(self.shown) :])

    def _show(self, new):
        """Write what is new of the thinking or the answer; each line of thinking is indented."""
        lines = new
        if self.thinks:
            lines = new.replace("\n", "\n  ")
            if new and not self.shown:
                lines = "  " + lines
        self.screen.write(lines, GREY if self.thinks else BOLD)
        self.shown += new

    def _answer(self):
        """The thinking is over."""
        if not self.shown.strip():
            self.screen.write("  (answered at once, without thinking)", GREY)
        self.screen.write("\n\n")
        self.screen.write("Answer: ", BOLD)
        self.thinks = False
        self.ids = []
        self.shown = ""

    def end(self, response):
        """The response is over; where it has no answer, say so."""
        self.screen.write("\n")
        if response.answer is None:
            self.screen.say(f"\n{answer_text(response)}", BOLD)
