"""Where a script runs: its device, its place among torchrun's ranks, seeds, bfloat16, and how it ends."""

import ctypes
import hashlib
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from nanoreason.flags import UserError

PATIENCE = timedelta(minutes=10)  # a rank that keeps the others waiting for longer is taken to hang, and the run ends
LOST = re.compile(r"Connection (?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms|remote process exited")  # what gloo and NCCL say


def torchrun_place():
    """(rank, number of ranks, rank on this host) as torchrun sets them; (0, 1, 0) without it. The one place that reads the rank."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))


def complain(text):
    """One line on stderr: the script's name, the rank where there are several, the text."""
    rank, world, _ = torchrun_place()
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {f'rank {rank}: ' if world > 1 else ''}{text}\n")
    sys.stderr.flush()


def run_script(main):
    """Call main(); a UserError becomes one line on stderr and exit status 2, Ctrl-C ends with 130.

    Under torchrun a rank that fails says why and leaves without a word to the others: any farewell might wait for them. Its connections
    close, whoever exchanges with it fails in turn, and torchrun sends SIGTERM to all that are left. These say that it was not their fault.
    """
    rank, world, _ = torchrun_place()
    status = 0
    try:
        main()
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # a rank that leaves early can abort the others' last exchange
            dist.destroy_process_group()
    except UserError as error:
        if rank > 0:
            _let_torchrun_end_us()  # most mistakes are every rank's, and rank 0 has said them by now
        complain(" ".join(str(error).split()))
        if rank == 0 and world > 1:
            time.sleep(1)  # a rank that a busy machine keeps back comes to the same mistake before torchrun ends it
        status = 2
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if world == 1:
            raise
        status, lost = 1, LOST.search(str(error)) if isinstance(error, RuntimeError) else None
        if lost:
            complain(f"stopped ({lost[0]}): another rank failed, hangs or was lost; its own message, if it left one, is above")
            _let_torchrun_end_us()  # it takes the first to leave for the culprit
        else:
            sys.excepthook(*sys.exc_info())  # torch's, which begins every line with the rank
    if world > 1 and status:
        sys.stdout.flush()
        os._exit(status)
    if status:
        sys.exit(status)


def _let_torchrun_end_us():
    """Wait a moment for the SIGTERM that torchrun sends once another rank has ended, and die of it in silence."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3)


def _heed_sigterm():
    """Say so and leave when SIGTERM comes. A thread does it: the main one may be waiting inside an exchange, where Python handles no signal."""
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # without a handler in Python nothing would be written to the pipe
    signal.set_wakeup_fd(tell)

    def wait():
        while os.read(told, 1)[0] != signal.SIGTERM:
            pass
        complain("stopped (SIGTERM): another rank failed, hangs or was lost, or torchrun was told to end; the reason, if there is one, is above")
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class Machine:
    """Where this process runs: its device and its place among torchrun's ranks."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self):
        return self.rank == 0

    @property
    def memory(self):
        """Bytes that this process could use on its device: all of a GPU, or its share of the machine's own."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory()
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def total(self, value):
        """Sum of a number over all ranks, as a float."""
        if self.world == 1:
            return float(value)
        tensor = torch.tensor([float(value)], dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def sum(self, tensor):
        """Sum of a small tensor over all ranks, element by element."""
        if self.world == 1:
            return tensor
        shared = tensor.to(self.device)
        dist.all_reduce(shared)
        return shared.to(tensor.device)

    def sum_gradients(self, model):
        """Sum every gradient over all ranks in one bucket; a parameter without one counts as zero, and where no rank has any, none appears."""
        if self.world == 1 or not self.total(any(p.grad is not None for p in model.parameters())):
            return
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        dist.all_reduce(flat)
        for p, g in zip(model.parameters(), flat.split([p.numel() for p in model.parameters()])):
            p.grad.copy_(g.view_as(p))


def keep_freed_memory():
    """Ask glibc to keep freed memory instead of handing it back to the kernel after every large tensor.

    Eager training on a CPU frees and takes megabytes thousands of times a second, and each round trip costs page faults:
    21 thousand tokens/s with this against 16 to 19 thousand without (micro model, 2 cores). Elsewhere it does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or no glibc
        return
    for parameter, value in ((-3, 1 << 30), (-1, 2**31 - 1), (-2, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(parameter, value)


def start_machine(device="auto"):
    """Pick the device and, under torchrun, join the other ranks; an exchange that takes longer than PATIENCE ends the run.

    device: auto, cpu, cuda or mps. Raises UserError when the one asked for is not there.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if (device == "cuda" and not torch.cuda.is_available()) or (device == "mps" and not has_mps):
        raise UserError(f"--device {device}: this machine has none")
    if device == "cpu":
        keep_freed_memory()
    rank, world, local_rank = torchrun_place()
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        torch.set_float32_matmul_precision("high")
        device = f"cuda:{torch.cuda.current_device()}"
    if world > 1 and not dist.is_initialized():
        _heed_sigterm()
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    return Machine(torch.device(device), rank, world)


def seed_for(seed, *purpose):
    """A 63-bit seed from (seed, purpose, ...) by hashing: neighbouring seeds share nothing, unlike seed + index."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest(), "big") >> 1


def generator(seed, *purpose, device="cpu"):
    """An explicit torch.Generator seeded from (seed, purpose, ...)."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *purpose))


def bf16_pays(device):
    """Whether matrix products in bfloat16 beat float32 here. A GPU is asked, an x86 CPU without
    AVX-512 has no such arithmetic, any other CPU is timed: 2 ms, or 30 where bfloat16 is emulated.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    fastest = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(128, 128, dtype=dtype)
        b = torch.ones(128, 512, dtype=dtype)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        fastest[dtype] = min(times)
    return fastest[torch.bfloat16] < 0.7 * fastest[torch.float32]


def autocast(device, enabled):
    """bfloat16 autocast where it is wanted, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def choose_bf16(precision, machine, began=None):
    """--precision auto|fp32|bf16 -> whether to use bfloat16; rank 0 decides for all. began: what a run that is resumed began with; auto keeps it."""
    if precision != "auto":
        return precision == "bf16"
    if began is not None:
        return began
    return machine.total(machine.main and bf16_pays(machine.device)) > 0
