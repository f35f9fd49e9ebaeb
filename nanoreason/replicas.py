"""Data parallelism on the cores of one machine: processes that share the weights of one model.

PyTorch's own way to use two cores is to cut every operator in two and to wait for both halves. A
training step of a small model has a thousand operators of a tenth of a millisecond, and waits as
often: when another program holds one of the cores, each wait may last a whole time slice. Here each
core takes some of the rows through the whole model, and they wait for one another twice per step.

    one process of the script        forked at the start, one per further core
    gradients of rows 0 2 4          gradients of rows 1 3 5
    wait, add all gradients          wait
    optimizer: half of the shapes    optimizer: the other half
    wait                             wait

Weights, gradients and optimizer state lie in memory that all of them see; nothing is sent but which
rows to take. Which core takes what does not depend on the load, nor does the order of the sums: a
run gives the same numbers every time.
"""

import atexit
import math
import mmap
import multiprocessing
import os
import signal
import sys
import warnings

import torch
from torch.nn.parallel import DistributedDataParallel

from nanoreason.flags import UserError
from nanoreason.run import STOPS

LARGEST = 20_000_000  # parameters; operators of larger models are long enough to be cut in two


def replica_count(model, machine, shares):
    """How many processes to train with: one per thread that PyTorch would use, and no more than
    `shares`, the pieces that a step falls into.

    1 where there is nothing to gain: on a GPU, for a large model, and under torchrun, whose ranks
    are replicas already; and where processes cannot be forked.
    """
    if machine.device.type != "cpu" or machine.world > 1 or model.num_params > LARGEST:
        return 1
    if sys.platform != "linux":  # macOS has fork, and libraries that do not survive it
        return 1
    return max(1, min(torch.get_num_threads(), shares))


def shared_zeros(shapes):
    """Float32 zeros of these shapes, in one piece of memory that forked processes share.

    Returns (flat, views): all numbers as one tensor, and one view of it per shape. The memory has
    no name and no file: containers often leave 64 MiB for those.
    """
    sizes = [shape.numel() for shape in shapes]
    flat = torch.frombuffer(mmap.mmap(-1, 4 * sum(sizes)), dtype=torch.float32)
    return flat, [part.view(shape) for part, shape in zip(flat.split(sizes), shapes)]


class Replicas:
    """`count` processes that train one model, this one among them.

    model: float32; optimizers: of its parameters; work(model, share): computes gradients by
    backward() and returns something that can be pickled. Make it before the first backward pass:
    autograd does not survive a fork. With count 1 nothing is forked or moved.
    """

    def __init__(self, model, optimizers, work, count=1):
        self.model = model
        self.optimizers = optimizers
        self.work = work
        self.count = count
        self.pipes = []
        self.threads = torch.get_num_threads()
        if count == 1:
            return
        params = list(model.parameters())
        states = [x for optimizer in optimizers for xs in optimizer.state.values() for x in xs]
        tensors = [*params, *states]
        _, places = shared_zeros([x.shape for x in tensors])
        for x, place in zip(tensors, places):
            place.copy_(x.detach())
            x.data = place
        # per process, (flat, views) of its gradients
        self.gradients_of = [shared_zeros([p.shape for p in params]) for _ in range(count)]
        for rank in range(1, count):
            self._fork(rank)
        atexit.register(self.close)  # also where an error ends the script
        self._use_gradients_of(0)
        torch.set_num_threads(1)

    def _use_gradients_of(self, rank):
        """Let the parameters' gradients be those of one process."""
        _, places = self.gradients_of[rank]
        for p, place in zip(self.model.parameters(), places):
            p.grad = place

    def _fork(self, rank):
        """Start the process `rank`, and keep a pipe to it."""
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        self.pipes.append(here)
        with warnings.catch_warnings():  # Python 3.12 warns of threads, which wait and hold nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            context.Process(target=self._serve, args=(rank, there), daemon=True).start()
        there.close()

    def _serve(self, rank, pipe):
        """What a forked process does: the tasks it is sent, until the first process is gone."""
        for number in (getattr(signal, name) for name in STOPS):
            signal.signal(number, signal.SIG_IGN)  # the first process decides when to stop
        torch.set_num_threads(1)
        for inherited in self.pipes:
            inherited.close()  # a pipe ends only when nobody holds the end of the first process
        while True:
            try:
                task, argument = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                pipe.send((None, self._do(rank, task, argument)))
            except Exception as error:
                self._send_error(pipe, error)

    @staticmethod
    def _send_error(pipe, error):
        """Tell the first process, or end where it is gone, as after a second Ctrl-C."""
        try:
            pipe.send((error, None))
        except OSError:
            os._exit(0)

    def _do(self, rank, task, argument):
        """One task of the process `rank`.

        "gradients": the result of `work` on a share, the argument. "step": this process's part of
        the optimizers' work; the argument is their learning rates.
        """
        if task == "gradients":
            if rank > 0:
                self._use_gradients_of(rank)
                self.gradients_of[rank][0].zero_()
            return self.work(self.model, argument)
        if rank > 0:
            self._use_gradients_of(0)  # where the sum is
        parts = []
        for optimizer, rate in zip(self.optimizers, argument):
            optimizer.lr = rate
            parts += optimizer.parts()
        for part in parts[rank :: self.count]:
            part()

    def _everywhere(self, task, arguments):
        """Send every process a task, and do that of this one; returns their results in order.

        arguments: one per process. Raises what a process raised, and UserError when one is gone.
        """
        try:
            for pipe, argument in zip(self.pipes, arguments[1:]):
                pipe.send((task, argument))
            results = [self._do(0, task, arguments[0])]
            replies = [pipe.recv() for pipe in self.pipes]
        except (EOFError, ConnectionError):
            raise UserError("a process of this run was killed, perhaps for want of memory; "
                            "--resume goes on from the last checkpoint") from None
        for error, result in replies:
            if error:
                raise error
            results.append(result)
        return results

    def gradients(self, shares):
        """[work(model, share), ...] of `count` shares, side by side.

        The model then has the sum of all gradients.
        """
        results = self._everywhere("gradients", shares)
        if self.count > 1:
            total, *others = (flat for flat, _ in self.gradients_of)
            for flat in others:
                total += flat
        return results

    def step(self, max_norm=None):
        """One step of all optimizers, and gradients forgotten.

        max_norm: a longer gradient is scaled down to it. Returns the norm of the gradient before
        that. Where it is NaN or infinite there is no step: the weights stay those of before.
        """
        params = list(self.model.parameters())
        total = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        norm = total.item()
        if math.isfinite(norm):
            if max_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(params, max_norm, total)
            self._take_step()
        # DDP keeps gradients in its buckets, and several processes in their shared memory
        stay = self.count > 1 or isinstance(self.model, DistributedDataParallel)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not stay)
        return norm

    def _take_step(self):
        if self.count == 1:
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            rates = [optimizer.lr for optimizer in self.optimizers]
            self._everywhere("step", [rates] * self.count)

    def close(self):
        """Let the other processes go."""
        atexit.unregister(self.close)
        for pipe in self.pipes:
            pipe.close()
        self.pipes = []
        torch.set_num_threads(self.threads)
