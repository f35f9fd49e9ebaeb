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

import mmap
import multiprocessing
import os
import signal
import sys
import warnings

import torch
from torch.nn.parallel import DistributedDataParallel

LARGEST = 20_000_000  # parameters; operators of larger models are long enough to be cut in two


def replica_count(model, machine, shares):
    """How many processes pay: one per thread that PyTorch would use, and no more than `shares`, the
    pieces that a step falls into. 1 where there is nothing to gain: on a GPU, for a large model,
    under torchrun, whose ranks are replicas already; and where processes cannot be forked."""
    if machine.device.type != "cpu" or machine.world > 1 or model.num_params > LARGEST:
        return 1
    if sys.platform != "linux":  # macOS has fork, and libraries that do not survive it
        return 1
    return max(1, min(torch.get_num_threads(), shares))


def shared_zeros(shapes):
    """Float32 zeros of these shapes, in one piece of memory that forked processes share. It has no
    name and no file: containers often leave 64 MiB for those."""
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
        for x, place in zip(tensors, shared_zeros([x.shape for x in tensors])[1]):
            place.copy_(x.detach())
            x.data = place
        self.gradients_of = [shared_zeros([p.shape for p in params]) for _ in range(count)]
        for rank in range(1, count):
            self._fork(rank)
        self._look_at(0)
        torch.set_num_threads(1)

    def _look_at(self, rank):
        """Let the parameters' gradients be those of one process."""
        for p, place in zip(self.model.parameters(), self.gradients_of[rank][1]):
            p.grad = place

    def _fork(self, rank):
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        self.pipes.append(here)
        with warnings.catch_warnings():  # Python 3.12 warns of threads, which wait and hold nothing
            warnings.simplefilter("ignore", DeprecationWarning)
            context.Process(target=self._serve, args=(rank, there), daemon=True).start()
        there.close()

    def _serve(self, rank, pipe):
        """What a forked process does: as it is told, until the first one is gone."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one decides when to stop
        torch.set_num_threads(1)
        for theirs in self.pipes:
            theirs.close()  # or it would keep itself and the others waiting for the first one
        while True:
            try:
                told = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            try:
                pipe.send((None, self._do(rank, *told)))
            except Exception as error:
                pipe.send((error, None))

    def _do(self, rank, what, told):
        """One task of the process `rank`: gradients of a share, or its part of the optimizers."""
        if what == "gradients":
            if rank > 0:
                self._look_at(rank)
                self.gradients_of[rank][0].zero_()
            return self.work(self.model, told)
        if rank > 0:
            self._look_at(0)  # where the sum is
        parts = []
        for optimizer, rate in zip(self.optimizers, told):
            optimizer.lr = rate
            parts += optimizer.parts()
        for part in parts[rank :: self.count]:
            part()

    def _everywhere(self, what, told):
        """Give every process a task, and do that of this one; returns their results in order."""
        for pipe, message in zip(self.pipes, told[1:]):
            pipe.send((what, message))
        results = [self._do(0, what, told[0])]
        try:
            replies = [pipe.recv() for pipe in self.pipes]
        except EOFError:
            raise RuntimeError("a process of this run was killed, perhaps for want of memory") from None
        for error, result in replies:
            if error:
                raise error
            results.append(result)
        return results

    def gradients(self, shares):
        """[work(model, share), ...] of `count` shares, side by side. The model then has the sum of
        all gradients."""
        results = self._everywhere("gradients", shares)
        if self.count > 1:
            total, *others = (flat for flat, _ in self.gradients_of)
            for flat in others:
                total += flat
        return results

    def step(self):
        """One step of all optimizers, and gradients forgotten."""
        if self.count == 1:
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            self._everywhere("step", [[o.lr for o in self.optimizers]] * self.count)
        # DDP keeps gradients in its buckets, and several processes in their shared memory
        stay = self.count > 1 or isinstance(self.model, DistributedDataParallel)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not stay)

    def close(self):
        """Let the other processes go."""
        for pipe in self.pipes:
            pipe.close()
        self.pipes = []
        torch.set_num_threads(self.threads)
