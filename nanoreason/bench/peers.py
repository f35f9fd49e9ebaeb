"""The same model and the same work in other people's code, for the bench to compare with. Needs transformers, trl and datasets.

    to_qwen3            our weights as a transformers.Qwen3ForCausalLM: the same function, in their code
    peer_generate       sampling with transformers' own `generate`
    trl_grpo            GRPO steps by trl.GRPOTrainer, on our questions, judged by our rewards
    padded_sft_rate     our own GPT trained the way a short script would: padded batches, AdamW, float32

Everything a peer can be told to do faster is an argument here, so that the bench can pick its best setting.
"""

import copy
import tempfile
import time

import torch
import torch.nn.functional as F

from nanoreason.data import IGNORE
from nanoreason.rewards import outcome_reward
from nanoreason.tokenizer import END, PAD, VOCAB_SIZE, parse_response, render_prompt


def to_qwen3(model):
    """A transformers.Qwen3ForCausalLM with the weights of `model` (GPT), float32, in eval mode, on the model's device.

    The architectures are one and the same; only names differ, and two fused matrices are split: qkv (H + 2K heads of D rows, in that
    order) and gate_up (gate first). END and PAD become its eos and pad tokens.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c, ours = model.config, model.state_dict()
    config = Qwen3Config(vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.d_ff, num_hidden_layers=c.n_layer,
                         num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, max_position_embeddings=c.max_len,
                         rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta), rms_norm_eps=1e-6,
                         tie_word_embeddings=c.tie_embeddings, pad_token_id=PAD, eos_token_id=END, bos_token_id=None, dtype="float32")
    theirs = {"model.embed_tokens.weight": ours["embed.weight"], "model.norm.weight": ours["norm.weight"], "lm_head.weight": ours["head.weight"]}
    for i in range(c.n_layer):
        block, layer = f"blocks.{i}.", f"model.layers.{i}."
        q, k, v = ours[block + "attn.qkv.weight"].split([heads * c.head_dim for heads in (c.n_head, c.n_kv_head, c.n_kv_head)])
        gate, up = ours[block + "mlp.gate_up.weight"].chunk(2)
        parts = {"input_layernorm": ours[block + "attn_norm.weight"], "post_attention_layernorm": ours[block + "mlp_norm.weight"],
                 "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": ours[block + "attn.out.weight"],
                 "self_attn.q_norm": ours[block + "attn.q_norm.weight"], "self_attn.k_norm": ours[block + "attn.k_norm.weight"],
                 "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": ours[block + "mlp.down.weight"]}
        theirs |= {f"{layer}{name}.weight": tensor for name, tensor in parts.items()}
    qwen = Qwen3ForCausalLM(config)
    qwen.load_state_dict(theirs)
    return qwen.to(model.embed.weight.device).eval()


def left_padded(prompts, device=None):
    """Prompts (lists of ids) as `generate` wants them: ids and attention mask, both (P, T) int64, padded on the left.

    [[7 8 9] [5]]  ->  ids [[7 8 9] [PAD PAD 5]]      mask [[1 1 1] [0 0 1]]
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


@torch.inference_mode()
def peer_generate(qwen, prompts, samples, max_new_tokens, temperature=1.0, forced=False, dtype=torch.float32, **options):
    """Sample `samples` responses to each prompt with transformers' `generate`; all rows are decoded together.

    prompts: lists of ids. forced: every row runs to max_new_tokens, stop token or not. dtype: of weights and cache; a model in another
    one is copied first, off the clock. options: further arguments of `generate`, such as cache_implementation="static".
    Returns (new tokens up to and including each row's stop token, seconds).
    """
    if qwen.dtype != dtype:
        qwen = copy.deepcopy(qwen).to(dtype)
    ids, mask = left_padded(prompts, qwen.device)
    start = time.perf_counter()
    out = qwen.generate(input_ids=ids, attention_mask=mask, num_return_sequences=samples, max_new_tokens=max_new_tokens, do_sample=True,
                        temperature=temperature, top_k=0, top_p=1.0, use_cache=True, eos_token_id=None if forced else END, pad_token_id=PAD, **options)
    new = out[:, ids.size(1) :].cpu()  # (P * samples, L)
    seconds = time.perf_counter() - start
    stop = (new == END).long()
    return new.numel() if forced else int((stop.cumsum(1) - stop == 0).sum()), seconds


def id_tokenizer():
    """A transformers tokenizer whose text is "<448> <17>": one word an id, so that TRL, which insists on text, handles exactly our ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    word = "<{}>".format
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(VOCAB_SIZE)}, unk_token=word(PAD)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=word(PAD), eos_token=word(END), padding_side="left")


def trl_grpo(model, problems, steps, prompts=32, samples=8, micro_rows=256, max_new_tokens=160, bf16=False, learning_rate=3e-4, **options):
    """GRPO steps by trl.GRPOTrainer on a copy of `model` (GPT) as Qwen3: one rollout of prompts x samples, one optimizer step.

    problems: at least `prompts` of them; drawn without repeats until all were used. micro_rows: responses in one forward pass of the
    update, a divisor of prompts * samples. bf16: autocast, as TRL does it. No KL, temperature 1, the outcome reward, AdamW.
    options: further fields of trl.GRPOConfig. Returns a list of dicts, one a step: seconds; of these generate_seconds and
    judge_seconds; tokens, sampled, stop tokens included; reward, the mean.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    log = []

    def clocked(call, name):
        """`call`, its seconds added to the running step's record."""
        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = call(*args, **kwargs)
            log[-1][name] += time.perf_counter() - start
            return result
        return timed

    def scorer(completion_ids, problem, **_):
        rewards = [outcome_reward(problems[p], parse_response(ids)) for p, ids in zip(problem, completion_ids)]
        log[-1] |= dict(tokens=sum(map(len, completion_ids)), reward=sum(rewards) / len(rewards))
        return rewards

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            log.append(dict(seconds=time.perf_counter(), generate_seconds=0.0, judge_seconds=0.0))

        def on_step_end(self, *_, **__):
            log[-1]["seconds"] = time.perf_counter() - log[-1]["seconds"]

    qwen = to_qwen3(model)
    qwen.generate = clocked(qwen.generate, "generate_seconds")
    rows = [dict(prompt=" ".join(f"<{i}>" for i in render_prompt(p.question)), problem=index) for index, p in enumerate(problems)]
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(output_dir=scratch, max_steps=steps, per_device_train_batch_size=micro_rows,
                            gradient_accumulation_steps=prompts * samples // micro_rows, num_generations=samples,
                            max_completion_length=max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, beta=0.0, loss_type="grpo",
                            learning_rate=learning_rate, lr_scheduler_type="constant", max_grad_norm=1.0, bf16=bf16, use_cpu=model.embed.weight.device.type == "cpu",
                            gradient_checkpointing=False,  # TRL's default trades a second forward pass for memory; nothing is short of it here
                            disable_dropout=True, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True, **options)
        judge_clocked = clocked(scorer, "judge_seconds")
        judge_clocked.__name__ = "judge"  # TRL names its metrics after the function
        trainer = GRPOTrainer(qwen, judge_clocked, args=config, train_dataset=Dataset.from_list(rows), processing_class=id_tokenizer(), callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return log


def padded_batch(examples, device=None):
    """Examples, padded on the right: tokens and targets, both (B, T) int64; only response tokens are targets, the rest is IGNORE.

    [7 8 9] prompt_len 1, [5 6] prompt_len 0   ->   tokens [[7 8 9] [5 6 PAD]]      targets [[8 9 .] [6 . .]]
    """
    shape = len(examples), max(len(e.ids) for e in examples)
    tokens, targets = torch.full(shape, PAD, device=device), torch.full(shape, IGNORE, device=device)
    for row, e in enumerate(examples):
        ids, learned = torch.tensor(e.ids, device=device), max(e.prompt_len - 1, 0)
        tokens[row, : len(ids)] = ids
        targets[row, learned : len(ids) - 1] = ids[learned + 1 :]
    return tokens, targets


def padded_sft_rate(model, examples, batch_rows, steps, learning_rate=1e-3):
    """Real tokens trained a second by the plain loop: a copy of `model`, batches in the order of `examples`, padded to their longest, eager,
    float32, AdamW, cross-entropy of every place with the response tokens as targets.

    Real tokens are those of the examples, prompts included, padding left out. Raises ValueError for fewer than steps * batch_rows examples.
    """
    if len(examples) < steps * batch_rows:
        raise ValueError(f"{steps} batches of {batch_rows} need {steps * batch_rows} examples, not {len(examples)}")
    model = copy.deepcopy(model).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    device, real, start = model.embed.weight.device, 0, time.perf_counter()
    for step in range(steps):
        batch = examples[step * batch_rows : (step + 1) * batch_rows]
        tokens, targets = padded_batch(batch, device)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        real += sum(len(e.ids) for e in batch)
    loss.item()  # on a GPU: wait for the queue
    return real / (time.perf_counter() - start)
