"""The same model and the same work in other people's code, for the bench to compare with.

    to_qwen3            our weights as a transformers.Qwen3ForCausalLM: the same function
    peer_generate       sampling with transformers' own `generate`
    trl_grpo            GRPO steps by trl.GRPOTrainer, on our questions, with our rewards
    padded_sft_rate     our own GPT trained as a short script would: padded batches, AdamW, float32

Needs transformers, trl and datasets. Everything that a peer can be told to do faster is an argument
here, so that the bench can pick its best setting.
"""

import copy
import tempfile
import time

import torch
import torch.nn.functional as F

from nanoreason.data import IGNORE
from nanoreason.rewards import outcome_reward


# transformers


def qwen3_config(config, tokenizer):
    """Our GPTConfig as a transformers.Qwen3Config, with our tokens for the end and for padding."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_len,
        rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta),
        rms_norm_eps=1e-6,
        tie_word_embeddings=config.tie_embeddings,
        pad_token_id=tokenizer.pad,
        eos_token_id=tokenizer.end,
        bos_token_id=None,
        dtype="float32",
    )


def qwen3_block(config, weights, i):
    """Weights of our block i under Qwen3's names: {name: tensor}. weights: our state_dict."""
    block = f"blocks.{i}."
    heads = (config.n_head, config.n_kv_head, config.n_kv_head)
    q, k, v = weights[block + "attn.qkv.weight"].split([n * config.head_dim for n in heads])
    gate, up = weights[block + "mlp.gate_up.weight"].chunk(2)
    parts = {
        "input_layernorm": weights[block + "attn_norm.weight"],
        "post_attention_layernorm": weights[block + "mlp_norm.weight"],
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": weights[block + "attn.out.weight"],
        "self_attn.q_norm": weights[block + "attn.q_norm.weight"],
        "self_attn.k_norm": weights[block + "attn.k_norm.weight"],
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": weights[block + "mlp.down.weight"],
    }
    return {f"model.layers.{i}.{name}.weight": tensor for name, tensor in parts.items()}


def to_qwen3(model):
    """A transformers.Qwen3ForCausalLM with the weights of `model` (GPT).

    float32, in eval mode, on the model's device. The architectures are the same; only names differ,
    and two fused matrices are split: qkv (H + 2K heads of D rows, in that order) and gate_up (gate
    first).
    """
    from transformers import Qwen3ForCausalLM

    weights = model.state_dict()
    theirs = {
        "model.embed_tokens.weight": weights["embed.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    for i in range(model.config.n_layer):
        theirs |= qwen3_block(model.config, weights, i)
    qwen = Qwen3ForCausalLM(qwen3_config(model.config, model.tokenizer))
    qwen.load_state_dict(theirs)
    return qwen.to(model.embed.weight.device).eval()


def left_padded(prompts, pad, device=None):
    """Prompts (lists of ids) as transformers' `generate` takes them, padded on the left.

    Returns ids and attention mask, both (P, T) int64.

    [[7 8 9] [5]], pad 1  ->  ids [[7 8 9] [1 1 5]]      mask [[1 1 1] [0 0 1]]
    """
    longest = max(map(len, prompts))
    ids = []
    mask = []
    for prompt in prompts:
        missing = longest - len(prompt)
        ids.append([pad] * missing + list(prompt))
        mask.append([0] * missing + [1] * len(prompt))
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def peer_generate(
    qwen, prompts, samples, max_new_tokens, temperature=1.0, forced=False, dtype=torch.float32,
    **options
):
    """Sample `samples` responses to each prompt with transformers' `generate`, all at once.

    prompts: lists of ids. forced: every row runs to max_new_tokens, stop token or not. dtype: of
    weights and cache; a model in another one is copied first, off the clock. options: further
    arguments of `generate`, such as cache_implementation="static".
    Returns (new tokens up to and including each row's stop token, seconds).
    """
    if qwen.dtype != dtype:
        qwen = copy.deepcopy(qwen).to(dtype)
    end = qwen.config.eos_token_id
    pad = qwen.config.pad_token_id
    ids, mask = left_padded(prompts, pad, qwen.device)
    start = time.perf_counter()
    out = qwen.generate(
        input_ids=ids, attention_mask=mask, num_return_sequences=samples,
        max_new_tokens=max_new_tokens, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
        use_cache=True, eos_token_id=None if forced else end, pad_token_id=pad, **options)
    new = out[:, ids.size(1) :].cpu()  # (P * samples, L)
    seconds = time.perf_counter() - start
    if forced:
        return new.numel(), seconds
    stop = (new == end).long()
    counted = stop.cumsum(1) - stop == 0  # up to the first stop token
    return int(counted.sum()), seconds


# TRL


def id_tokenizer(tokenizer):
    """A transformers tokenizer for our ids, whose text is "<448> <17>": one word per id.

    TRL insists on text; with this one it handles exactly our ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    word = "<{}>".format
    pad = word(tokenizer.pad)
    vocabulary = {word(i): i for i in range(tokenizer.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=pad))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, eos_token=word(tokenizer.end), padding_side="left")


def clocked(call, log, name):
    """`call`, which adds its seconds to `name` of the running step's record, log[-1]."""

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = call(*args, **kwargs)
        log[-1][name] += time.perf_counter() - start
        return result

    return timed


def step_clock(log):
    """A TRL callback that opens a record in `log` as a step begins, and times the step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            start = time.perf_counter()
            log.append(dict(seconds=start, generate_seconds=0.0, reward_seconds=0.0))

        def on_step_end(self, *_, **__):
            log[-1]["seconds"] = time.perf_counter() - log[-1]["seconds"]

    return Clock()


def outcome_rewards(problems, tokenizer, log):
    """The outcome reward as a TRL reward function; it also notes tokens and mean reward."""

    def reward(completion_ids, problem, **_):
        rewards = []
        for index, ids in zip(problem, completion_ids):
            rewards.append(outcome_reward(problems[index], tokenizer.parse_response(ids)))
        tokens = sum(map(len, completion_ids))
        log[-1] |= dict(tokens=tokens, reward=sum(rewards) / len(rewards))
        return rewards

    timed = clocked(reward, log, "reward_seconds")
    timed.__name__ = "reward"  # TRL names its metrics after the function
    return timed


def trl_grpo(
    model, problems, steps, prompts_per_step=32, samples=8, micro_rows=256, max_new_tokens=160,
    bf16=False, learning_rate=3e-4, **options
):
    """GRPO steps by trl.GRPOTrainer on a copy of `model` (GPT) as Qwen3.

    A step is one rollout of prompts_per_step x samples and one optimizer step. No KL, temperature
    1, the outcome reward, AdamW. problems: at least prompts_per_step of them; drawn without repeats
    until all were used. micro_rows: responses in one forward pass of the update, a divisor of
    prompts_per_step * samples. bf16: autocast, as TRL does it. options: further fields of
    trl.GRPOConfig.

    Returns a list of dicts, one per step: seconds; of these generate_seconds and reward_seconds;
    tokens sampled, stop tokens included; reward, the mean.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    log = []
    tokenizer = model.tokenizer
    qwen = to_qwen3(model)
    qwen.generate = clocked(qwen.generate, log, "generate_seconds")
    rows = []
    for index, problem in enumerate(problems):
        words = [f"<{i}>" for i in tokenizer.render_prompt(problem.question)]
        rows.append(dict(prompt=" ".join(words), problem=index))
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch, max_steps=steps, per_device_train_batch_size=micro_rows,
            gradient_accumulation_steps=prompts_per_step * samples // micro_rows,
            num_generations=samples, max_completion_length=max_new_tokens,
            temperature=1.0, top_k=0, top_p=1.0, beta=0.0, loss_type="grpo",
            learning_rate=learning_rate, lr_scheduler_type="constant", max_grad_norm=1.0,
            bf16=bf16, use_cpu=model.embed.weight.device.type == "cpu",
            # TRL's default trades a second forward pass for memory, of which there is enough here
            gradient_checkpointing=False,
            disable_dropout=True, logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, **options)
        trainer = GRPOTrainer(
            qwen, outcome_rewards(problems, tokenizer, log), args=config,
            train_dataset=Dataset.from_list(rows), processing_class=id_tokenizer(tokenizer),
            callbacks=[step_clock(log)])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return log


# The padded loop


def padded_batch(examples, device=None):
    """Examples padded on the right: tokens and targets, both (B, T) int64.

    Only response tokens are targets; the rest is IGNORE. Padding is 0, which nothing reads.

    [7 8 9] prompt_len 1, [5 6] prompt_len 0
        ->   tokens [[7 8 9] [5 6 0]]      targets [[8 9 .] [6 . .]]
    """
    shape = len(examples), max(len(e.ids) for e in examples)
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    targets = torch.full(shape, IGNORE, device=device)
    for row, e in enumerate(examples):
        ids = torch.tensor(e.ids, device=device)
        first = max(e.prompt_len - 1, 0)  # this place predicts the first response token
        tokens[row, : len(ids)] = ids
        targets[row, first : len(ids) - 1] = ids[first + 1 :]
    return tokens, targets


def padded_sft_rate(model, examples, batch_rows, steps, learning_rate=1e-3):
    """Real tokens trained per second by the plain loop, on a copy of `model`.

    Batches in the order of `examples`, padded to their longest; eager, float32, AdamW;
    cross-entropy of every place with the response tokens as targets. Real tokens are those of the
    examples, prompts included, padding left out. Raises ValueError for fewer than
    steps * batch_rows examples.
    """
    needed = steps * batch_rows
    if len(examples) < needed:
        raise ValueError(
            f"{steps} batches of {batch_rows} need {needed} examples, not {len(examples)}")
    model = copy.deepcopy(model).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    device = model.embed.weight.device
    real = 0
    start = time.perf_counter()
    for step in range(steps):
        batch = examples[step * batch_rows : (step + 1) * batch_rows]
        tokens, targets = padded_batch(batch, device)
        logits = model(tokens).flatten(0, 1)  # (B * T, V)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        real += sum(len(e.ids) for e in batch)
    loss.item()  # on a GPU: wait for the queue
    return real / (time.perf_counter() - start)
