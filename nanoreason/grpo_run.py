"""What a run of train_grpo.py keeps beside the algorithm: models, counters, checks, checkpoints."""

import copy

import torch

from nanoreason import checkpoint, plots
from nanoreason.evaluate import greedy_accuracy, sampled_accuracy
from nanoreason.flags import UserError
from nanoreason.generate import MAX_ROWS, make_sampler
from nanoreason.machine import choose_bf16
from nanoreason.model import memory_line, rl_memory, training_memory
from nanoreason.optim import AdamW
from nanoreason.questions import NO_SIGNAL, Questions, advise
from nanoreason.reward_model import load_reward_model
from nanoreason.run import RunFolder, read_metrics, say, stop_if_diverged, write_json

GOAL_PROBLEMS = 1000  # validation problems that --goal is measured on
REMEDY = "a lower --learning-rate, or a KL to the reference (--kl k3)"  # for a run that diverged
# A policy that has solved this share of a step's questions, and then gives this many wrong
# responses in a row, has collapsed.
COLLAPSED_FROM = 0.3
COLLAPSED_AFTER = 80


class Run:
    """A new run, or with --resume the one in --out. config: train_grpo.Config.

    model is the policy, which is trained; net is the same, compiled where asked for; sampler is its
    frozen copy that samples; reference is the frozen start (None without a KL). counts goes into
    the checkpoint:

        step, sampled_tokens    so far
        silent                  steps in a row without a group whose task rewards differ
        wrong                   responses since the last step with a right one
        best                    highest solve rate of a step
        reached                 whether --goal is reached
        checks                  {steps done: greedy accuracy on validation problems}
    """

    def __init__(self, config, machine):
        check_config(config, machine)
        self.config = config
        self.machine = machine
        self.folder = RunFolder(
            config,
            {"--data": config.data, "--reward-model": checkpoint.file_of(config.reward_model)},
            {"--init": checkpoint.file_of(config.init)},
        )
        weights_path = self.folder.weights_path
        state = self._load(weights_path)
        self.reward_model = None
        if config.reward_model:
            self.reward_model = load_reward_model(
                config.reward_model, config.reward, machine.device
            )
            start = "--resume" if weights_path else "--init"
            checkpoint.check_tokenizers({
                start: self.model.tokenizer, "--reward-model": self.reward_model.tokenizer
            })
        self.questions = self._questions()
        self.out = self.folder.out
        self.reference = None
        if config.kl != "none":
            self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.net = self.model
        if config.compile and machine.device.type != "cpu":
            self.net = torch.compile(self.model, dynamic=True)
        self.optimizer = AdamW(self.model.parameters(), config.learning_rate, betas=(0.9, 0.99))
        self.counts = dict(
            step=0, sampled_tokens=0, silent=0, wrong=0, best=0.0, reached=False, checks={}
        )
        self.best_is_due = False  # whether the next checkpoint is also to be best.pt
        if weights_path:
            self._resume(state)
        self.folder.prepare(machine)
        began_bf16 = state.get("bf16") if weights_path else None
        self.bf16 = choose_bf16(config.precision, machine, began_bf16)
        self.model.checkpoint_activations = config.checkpoint_activations
        self.sampler = make_sampler(self.model, self.bf16)
        self.last_step = min(config.steps, config.max_steps or config.steps)
        announce(self.model, self.reference, config, machine, self.bf16)
        self.validation = []
        if config.eval_every:
            self.validation = self.questions.held_out(config.eval_problems)
            if not self.validation:
                say("no question for validation: no best.pt is kept", machine)

    def _load(self, weights_path):
        """The checkpoint to start from; sets self.model. weights_path: of the run's own, if any."""
        config = self.config
        if weights_path:
            state = checkpoint.load_run(weights_path, "run", "optimizer", "reference", "difficulty")
        else:
            state = checkpoint.load(config.init)
        self.model = checkpoint.build_model(state, self.machine.device)
        longest = self.model.config.max_len
        if config.row_tokens > longest:
            raise UserError(f"--row-tokens {config.row_tokens} is longer than the model's context "
                            f"of {longest}")
        return state

    def _questions(self):
        config = self.config
        context = self.model.config.max_len
        if self.reward_model:
            context = min(context, self.reward_model.config.max_len)
        room = context - config.max_reasoning_tokens
        return Questions(
            config.families, config.level, self.model.tokenizer, config.data, config.seed, room,
            self.machine,
        )

    def _resume(self, state):
        self.optimizer.load_state_dict(state["optimizer"])
        self.counts |= state["run"]
        self.questions.difficulty = state["difficulty"]
        if self.reference:
            self.reference.load_state_dict(state["reference"])
        chosen = self.selected_step if self.counts["checks"] else None
        self.best_is_due = checkpoint.best_is_due(self.out, chosen, self.step)

    def begin(self):
        """Validate the weights that a new run starts from."""
        if self.validation and not self.counts["checks"]:
            self.validate()
        if self.best_is_due:
            self.save()

    @property
    def step(self):
        """Steps done."""
        return self.counts["step"]

    @property
    def done(self):
        """Whether all steps are made, the tokens are used up, or the goal is reached."""
        budget = self.config.token_budget
        used_up = budget and self.counts["sampled_tokens"] >= budget
        return self.step >= self.last_step or self.counts["reached"] or bool(used_up)

    @property
    def warmup(self):
        """Factor on the peak learning rate, for the next step."""
        return min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))

    def finish_step(self, row):
        """Count a step whose metrics are `row`; renew the reference, validate and look at the goal
        where it is time to."""
        config = self.config
        norm = torch.nn.utils.get_total_norm(self.model.parameters()).item()
        figures = {name: value for name, value in row.items() if isinstance(value, float)}
        stop_if_diverged(self.step, figures | {"the norm of the weights": norm}, REMEDY)
        self.counts["step"] += 1
        self.counts["sampled_tokens"] += row["sampled_tokens"]
        if self.reference and config.refresh_reference:
            if self.step % config.refresh_reference == 0:
                self.reference.load_state_dict(self.model.state_dict())
        if self.validation and self.step % config.eval_every == 0:
            row["val_greedy"] = self.validate()
        if config.goal and row["solve_rate"] >= config.goal:  # training says when to look
            families = 1 if self.questions.own else len(self.questions.families)
            problems = self.questions.held_out(GOAL_PROBLEMS // families)
            limit = config.max_reasoning_tokens
            found = sampled_accuracy(self.sampler, problems, limit, self.step)
            row["val_sampled"] = found
            self.counts["reached"] = found["ci"][0] >= config.goal
        self.counts["silent"] = self.counts["silent"] + 1 if row["no_signal"] == 1 else 0
        self.counts["best"] = max(self.counts["best"], row["solve_rate"])
        self.counts["wrong"] = 0 if row["solve_rate"] else self.counts["wrong"] + config.batch_size
        if not self.collapse:
            advise(row, self.counts["silent"], self.machine)
        elif self.counts["wrong"] // config.batch_size % NO_SIGNAL == 0:
            say(self.collapse, self.machine)

    @property
    def collapse(self):
        """What to say of a policy that solved questions and now solves none; "" of any other."""
        wrong = self.counts["wrong"]
        best = self.counts["best"]
        if best < COLLAPSED_FROM or wrong < COLLAPSED_AFTER:
            return ""
        return (f"the last {wrong} responses are wrong, where {best:.0%} of a step's had been "
                "right: the policy has collapsed. Begin again, from best.pt or --init, with a "
                "lower --learning-rate, a KL to the reference (--kl k3) or a narrower "
                "--clip-ratio")

    @property
    def selected_step(self):
        """The step of the best check, of equals the latest."""
        checks = self.counts["checks"]
        return max(checks, key=lambda step: (checks[step]["acc"], step), default=self.step)

    def validate(self):
        """Greedy accuracy on validation problems. The best model so far is to be kept as best.pt;
        of equals the later one."""
        now = greedy_accuracy(self.sampler, self.validation, self.config.max_reasoning_tokens)
        self.counts["checks"][self.step] = now
        self.best_is_due = self.selected_step == self.step
        return now["acc"]

    @property
    def save_is_due(self):
        """Whether a checkpoint is wanted after this step."""
        return self.best_is_due or self.step % self.config.save_every == 0

    def save(self):
        """Write ckpt.pt, from which --resume goes on with the same numbers; then, where it is due,
        best.pt (checkpoint.best_is_due)."""
        checkpoint.save(
            self.out / "ckpt.pt", self.model, self.machine.main, run=self.counts, bf16=self.bf16,
            optimizer=self.optimizer.state_dict(), difficulty=self.questions.difficulty,
            reference=self.reference and self.reference.state_dict(),
        )
        if self.best_is_due:
            checkpoint.save(self.out / "best.pt", self.model, self.machine.main, run=self.counts,
                            selected=self.step)
            self.best_is_due = False

    def finish(self, seconds):
        """Last check and checkpoint, report and figures; returns the report. Nothing is written
        for a run that was finished before."""
        if self.folder.finished:
            return self.folder.report(self.machine)
        checks = self.counts["checks"]
        if self.validation and self.step not in checks:
            self.validate()
        self.save()
        best = self.selected_step
        report = dict(
            stage="grpo", params=self.model.num_params, steps=self.step,
            sampled_tokens=self.counts["sampled_tokens"], seconds=seconds,
            reached=self.counts["reached"], selected_step=best, val_greedy=checks,
        )
        if self.machine.main:
            write_json(self.out / "report.json", report)
            if rows := read_metrics(self.out / "metrics.jsonl"):
                plots.rl_figures({self.out.name: rows}, self.out)
        line = f"grpo: {self.step} steps in {seconds:.0f}s"
        if checks:
            line += (f"; greedy validation accuracy {checks[best]['acc']:.3f} "
                     f"(n={checks[best]['n']}) after step {best}, whose weights are kept as "
                     "best.pt")
        if self.collapse:
            line += f"; {self.collapse}"
        say(line, self.machine)
        return report


def check_config(config, machine):
    """UserError for what single flags cannot show to be wrong."""
    group = config.num_samples_per_prompt
    if not config.init and not config.resume:
        raise UserError("--init is missing: GRPO needs a model to start from, for instance "
                        "--init runs/base")
    if config.batch_size % group:
        raise UserError(f"--batch-size {config.batch_size} is no multiple of "
                        f"--num-samples-per-prompt {group}")
    if config.prompts_per_step < machine.world * config.minibatches:
        raise UserError(f"--batch-size {config.batch_size} makes {config.prompts_per_step} "
                        f"question(s), too few for {machine.world} x {config.minibatches} "
                        "(ranks x minibatches)")
    if (config.reward in ("orm", "prm")) != bool(config.reward_model):
        raise UserError(f"--reward {config.reward} and --reward-model "
                        f"{config.reward_model or '(none)'} do not go together: orm and prm need "
                        "a reward model, nothing else takes one")
    if config.overlong_buffer > config.max_reasoning_tokens:
        raise UserError(f"--overlong-buffer {config.overlong_buffer} is longer than "
                        f"--max-reasoning-tokens {config.max_reasoning_tokens}")


def announce(model, reference, config, machine, bf16):
    """What the run is and what it will keep in memory, before it starts."""
    say(f"grpo: {model.num_params / 1e6:.2f}M parameters, {config.prompts_per_step} questions x "
        f"{config.num_samples_per_prompt} responses per step, {config.loss}, KL {config.kl}, "
        f"reward {config.reward}, {'bf16' if bf16 else 'fp32'} on {machine.device}", machine)
    parts = training_memory(
        model.config, config.micro_tokens, config.row_tokens, bf16, config.checkpoint_activations,
        dense=bf16 and machine.device.type == "cpu",
    )
    rows = min(MAX_ROWS, config.batch_size // machine.world)
    slots = config.max_reasoning_tokens + 64
    parts |= rl_memory(model.config, rows, slots, bf16, reference is not None)
    say(memory_line(parts, machine), machine)


def progress_line(row):
    """A step's metrics in a few words."""
    return (f"solved {row['solve_rate']:.2f}  length {row['length']:.1f}  "
            f"thinks {row['thinks']:.2f}  no signal {row['no_signal']:.2f}")
