"""Where a script runs: its device, its rank under torchrun, seeds, bfloat16, and how it ends."""

import codecs
import ctypes
import errno
import hashlib
import os
import re
import select
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

# a rank that keeps the others waiting for longer is taken to hang, and the run ends
PATIENCE = timedelta(minutes=10)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk answers
# what gloo and NCCL say when another rank is gone
LOST = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Timed out waiting \d+ms|remote process exited"
)


def torchrun_place():
    """(rank, number of ranks, rank on this host) as torchrun sets them; (0, 1, 0) without it.

    The one place that reads the rank.
    """
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return rank, world, local_rank


def complain(text):
    """One line on stderr: the script's name, the rank where there are several, the text."""
    rank, world, _ = torchrun_place()
    script = Path(sys.argv[0]).name
    who = f"rank {rank}: " if world > 1 else ""
    try:
        sys.stderr.write(f"{script}: {who}{text}\n")
        sys.stderr.flush()
    except OSError:  # nobody reads stderr; the exit status still tells
        pass


SIGNS = {"−": "-", "×": "*", "÷": "/", "±": "+-", "…": "...", "→": "->"}


def _spell(error):
    """What is written in place of a character that an encoding lacks, for codecs.

        15 − 3 = 12, 山  in cp1252  ->  15 - 3 = 12, \\u5c71
    """
    text = "".join(SIGNS.get(c, c) for c in error.object[error.start : error.end])
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def safe_streams():
    """Let nothing that a script prints be an error, whatever the terminal.

    Characters that stdout or stderr cannot write are spelt in ASCII (`_spell`). A standard stream
    that the caller has closed leads to nowhere; without that, sys.stdout would be None, and the
    next file to be opened would get its number, and the prints of C libraries.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(nowhere, True)  # processes that are started here have it too
    codecs.register_error("spell", _spell)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spell")


def run_script(main):
    """Call main(); a UserError becomes one line on stderr and exit status 2, Ctrl-C exits with 130.

    Where nobody reads stdout any more, as in `python sample.py ... | head -1`, the script ends
    silently with 141, as the shell's own tools do.

    Under torchrun, a rank that fails says why and exits without a collective call, because a
    collective would block if a rank is gone. Its connections close, so the next exchange of any
    other rank with it fails too, and torchrun sends SIGTERM to all ranks that are left. Each of
    these says in one line that another rank failed.
    """
    _, world, _ = torchrun_place()
    status = 0
    safe_streams()
    try:
        main()
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # a rank that exits early can abort the others' last exchange
            dist.destroy_process_group()
    except UserError as error:
        _report_mistake(error)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            status = 141
        elif isinstance(error, OSError) and error.errno in NO_ROOM:
            _report_mistake(f"cannot write {error.filename or 'a file'}: {error.strerror}")
            status = 2
        elif world == 1:
            raise
        else:
            _report_failure(error)
            status = 1
    if world > 1 and status:
        sys.stdout.flush()
        os._exit(status)  # sys.exit would run exit handlers, and these may wait for other ranks
    if status:
        sys.exit(status)


def _reader_is_gone():
    """Whether stdout is a pipe that nobody reads; what is still to be written there is dropped."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        is_gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    else:  # Windows: ask by writing what could not be written
        try:
            sys.stdout.flush()
            is_gone = False
        except OSError:
            is_gone = True
    if is_gone:  # Python flushes once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone


def _report_mistake(error):
    """A UserError as one line. Most mistakes are every rank's, so rank 0 alone should say them."""
    rank, world, _ = torchrun_place()
    if rank > 0:
        _wait_for_sigterm()  # if rank 0 made the same mistake, this process ends here
    complain(" ".join(str(error).split()))
    if rank == 0 and world > 1:
        # another rank may be slower on a busy machine: it should come to the same mistake, and
        # not to a lost connection, before torchrun ends it
        time.sleep(1)


def _report_failure(error):
    """Any other exception of one of several ranks, which may be the loss of another rank."""
    lost = LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    if lost:
        complain(
            f"stopped ({lost[0]}): another rank failed, hangs or was lost; "
            "its own message, if it left one, is above"
        )
        _wait_for_sigterm()  # torchrun reports the first rank to exit as the one that failed
    else:
        sys.excepthook(*sys.exc_info())  # torch's, which begins every line with the rank


def _wait_for_sigterm():
    """Wait a moment for the SIGTERM that torchrun sends once another rank has exited.

    The signal then ends this process without a message.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(3)


def _exit_on_sigterm():
    """On SIGTERM, say one line and exit.

    A thread waits for the signal: the main thread may be inside an exchange with other ranks,
    where Python handles no signal. Windows has no such signal to wait for.
    """
    if os.name != "posix":
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    # without a handler in Python nothing would be written to the pipe
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(write_end)

    def wait():
        while os.read(read_end, 1)[0] != signal.SIGTERM:
            pass
        complain(
            "stopped (SIGTERM): another rank failed, hangs or was lost, or torchrun was told "
            "to end; the reason, if there is one, is above"
        )
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class Machine:
    """Where this process runs: its device, its rank, and `world`, the number of ranks."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self):
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def memory(self):
        """Bytes that this process may use: all of its GPU, or its share of the host's memory; None
        where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_properties(self.device).total_memory
        if self.device.type == "mps":
            return torch.mps.recommended_max_memory()
        host = host_memory()
        return host and host // int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def total(self, value):
        """Sum of a number over all ranks, as a float."""
        if self.world == 1:
            return float(value)
        dtype = torch.float64 if self.device.type != "mps" else torch.float32
        tensor = torch.tensor([float(value)], dtype=dtype, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item()

    def sum(self, tensor):
        """Sum of a small tensor over all ranks, element by element.

        Use what is returned: `tensor` itself may be overwritten.
        """
        if self.world == 1:
            return tensor
        shared = tensor.to(self.device)
        dist.all_reduce(shared)
        return shared.to(tensor.device)

    def sum_gradients(self, model):
        """Sum the gradients of all ranks, in place, in one exchange.

        A parameter without a gradient on this rank counts as zero. Where no rank has a gradient,
        none appears: the optimizer then makes no step.
        """
        if self.world == 1:
            return
        params = list(model.parameters())
        if not self.total(any(p.grad is not None for p in params)):
            return
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in params])  # (number of parameters,)
        dist.all_reduce(flat)
        sums = flat.split([p.numel() for p in params])
        for p, total in zip(params, sums):
            p.grad.copy_(total.view_as(p))


def host_memory():
    """Bytes of memory of this host; None where the system does not tell."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kibibytes = ctypes.c_ulonglong()
    windows = getattr(ctypes, "windll", None)
    if windows and windows.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes)):
        return kibibytes.value * 1024
    return None


def keep_freed_memory():
    """Ask glibc to keep freed memory and not to hand it back to the kernel.

    Eager training on a CPU frees and takes megabytes thousands of times per second, and each time
    that memory comes from the kernel costs page faults: 21 thousand tokens/s with this against
    16 to 19 thousand without (micro model, 2 cores). Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or no glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    mallopt(-2, 1 << 26)  # M_TOP_PAD


def bound_kernel_caches(shapes):
    """Let oneDNN keep the kernels of at most so many shapes, where the user sets no other number.

    It compiles bfloat16 products for every shape that it meets, and keeps 1,024 in two places.
    Sampling meets a new shape at nearly every step: with 64 a vote of 2,048 takes 0.5 GiB instead
    of 1.2, and GRPO with 512 responses 0.9 instead of 1.8, in the same time (1.05M parameters).
    Supervised training meets the same shapes again: with 64 a step takes 93 ms, with 1,024 83.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(shapes))


def start_machine(device="auto", shapes=64):
    """Pick the device and, under torchrun, join the other ranks.

    device: auto, cpu, cuda or mps; shapes: of `bound_kernel_caches`. An exchange between ranks that
    takes longer than PATIENCE ends the run. Raises UserError when this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    if (device == "cuda" and not has_cuda) or (device == "mps" and not has_mps):
        raise UserError(f"--device {device}: this machine has none")
    if device == "cpu":
        keep_freed_memory()
        bound_kernel_caches(shapes)
    rank, world, local_rank = torchrun_place()
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        torch.set_float32_matmul_precision("high")  # float32 products may use TF32
        device = f"cuda:{torch.cuda.current_device()}"
    if world > 1 and not dist.is_initialized():
        _exit_on_sigterm()
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return Machine(torch.device(device), rank, world)


def seed_for(seed, *purpose):
    """A 63-bit seed from (seed, purpose, ...) by hashing.

    Neighbouring seeds share nothing, unlike seed + index: there, index 1 of seed 0 is index 0 of
    seed 1.
    """
    text = repr((seed, *purpose)).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed, *purpose, device="cpu"):
    """An explicit torch.Generator seeded from (seed, purpose, ...)."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *purpose))


def bf16_pays(device):
    """Whether matrix products in bfloat16 are faster than in float32 on this device.

    A GPU is asked. An x86 CPU without AVX-512 has no bfloat16 arithmetic. Any other CPU is timed:
    that takes 2 ms, or 30 where bfloat16 is emulated.
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
    """A context: bfloat16 autocast on `device` if `enabled`, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def choose_bf16(precision, machine, began_bf16=None):
    """--precision auto|fp32|bf16 -> whether to use bfloat16; rank 0 decides for all ranks.

    began_bf16: what a run that is resumed began with; auto keeps it.
    """
    if precision != "auto":
        return precision == "bf16"
    if began_bf16 is not None:
        return began_bf16
    return machine.total(machine.main and bf16_pays(machine.device)) > 0
