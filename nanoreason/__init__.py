"""nanoreason: how a language model learns to reason, in code to be read.

    nanoreason/*.py       the core, and what every script shares
    nanoreason/tasks/     the world: problem families, worked solutions, exact checkers
    nanoreason/pretrained/  the models that ship with the code, to be used: pretrained:final
    nanoreason/studies/   what stands behind the results; a first reader skips it
    nanoreason/bench/     how fast it is, beside the roofline and installed peers; skip it too

Where to begin: train_grpo.py, then generate.py, rewards.py, model.py. Imports run downwards only: a
module imports what stands behind its arrow, and all of that stands above it.

    flags ->
    machine -> flags
    run -> flags
    kernels ->
    attention -> kernels
    tokenizer -> flags
    tasks -> flags machine
    model -> attention
    optim -> flags
    replicas -> flags run
    data -> attention
    corpus -> flags machine run tokenizer tasks data
    pretrained -> flags run
    checkpoint -> flags run tokenizer model pretrained
    chat -> flags tasks pretrained
    generate -> model
    plots ->
    reward_model -> flags machine model data checkpoint
    rewards -> tokenizer tasks
    search -> tokenizer tasks generate reward_model
    evaluate -> machine tasks generate reward_model rewards search
    questions -> flags machine run tasks corpus evaluate
    experience -> machine tokenizer data generate reward_model rewards evaluate questions
    grpo_run -> flags machine run model optim checkpoint generate plots reward_model
        evaluate questions
    traces -> tasks corpus rewards
    workers -> flags
    pool -> machine run tasks tokenizer generate reward_model rewards evaluate workers
    labels -> flags machine run data generate reward_model rewards evaluate questions workers
        pool
    stages -> flags machine run model workers
    race -> flags run stages
    speedrun_report -> run tasks plots evaluate pool stages
    speedrun -> flags machine run tasks stages race speedrun_report
    pretrained.card -> flags run tasks pretrained reward_model speedrun_report
    pretrained.__main__ -> flags machine run pretrained checkpoint reward_model pretrained.card

bench and studies import the core; studies alone import scripts; nothing else imports those two.
"""
