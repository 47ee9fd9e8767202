"""The fields of every training run's config, with their defaults. base.py builds configs from them.

A recorded run that is older than a field gets the field's default from here (launch/run/defaults.py). So the default of
a new field must describe what runs did before it existed; a config that wants another value sets it. The blocks
`objective`, `adapt` and `data.corruption` have further fields that depend on the name in them. These have their
defaults where they are read, and so do the fields of `model` that describe the architecture.
"""

DEFAULTS: dict = dict(
    seed=0,
    # A workdir, trained or imported, whose parameters, architecture and tokenizer the run starts from, and which of its
    # checkpoints: a number, latest or best; empty: best if that run stopped early, else latest.
    init_from="",
    init_step="",
    steps=1000,
    batch_size=16,  # rows of the global batch
    accumulate=1,  # micro-batches per step
    mesh=dict(data=-1, stage=1, fsdp=1, expert=1, context=1, tensor=1),  # devices along each axis; -1: all others
    model=dict(
        remat="none",  # none, dots, full: store fewer activations and recompute them in the backward pass
        scan_unroll=0,  # layers per iteration of the scan over layers; 0: chosen by platform
        dtype="bfloat16",
        param_dtype="float32",
        dropout=0.0,
        embedding_noise=0.0,  # NEFTune's alpha, for fine-tuning: 5 to 15
        attention="auto",  # auto: chosen by platform; or splash, cudnn, xla, blocked: model/attention/attend.py
        context="gather",  # over mesh.context: gather all keys and values, or ring: pass them round in a ring
        pipeline_slots=0,  # over mesh.stage: micro-batches that start at each stage; 0: up to 4
        pipeline_groups=1,  # groups of layers per stage; 2 or more: circular schedule
    ),
    # Which parameters train. Patterns are regular expressions over parameter names, see model/patterns.py.
    train_only=(),  # ((pattern, bool), ...): the first match decides; empty: all train
    adapt=dict(method="none"),  # none, lora, adapter, prompt: see configs/lora.py and the others
    optimizer=dict(
        name="adamw",  # adamw, adam, sgd, adafactor, lion, muon
        learning_rate=3e-4,
        schedule="cosine",  # cosine, constant, wsd
        warmup_steps=100,
        final=0.1,  # learning rate at the end, as a share of the peak
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,  # multiplied by the learning rate, for every optimizer
        decay=(("norm|bias", False), (".*", True)),  # which parameters decay: the first pattern that matches decides
        rates=((".*", 1.0),),  # factors of the learning rate, by pattern too
        clip_norm=1.0,
        offload=False,  # keep the optimizer's state in host memory between steps
        correction_rate=1e-3,  # step size of the biases that balance experts (model.experts.correction)
    ),
    # The last two apply to mixtures of experts, see train/objectives/language.py.
    objective=dict(name="language", z_loss=0.0, label_smoothing=0.0, balance_loss=0.0, router_z_loss=0.0),
    data=dict(
        dir="runs/data",  # prepared once, shared by all runs
        # (source, weight; 0: only evaluated): stdlib, files:GLOB, tfds:NAME; examples: chat:GLOB, pairs:GLOB
        sources=(("stdlib", 1.0),),
        path="",  # one more source of examples, with weight 1
        format="chat",  # the kind of data.path: chat, pairs, labels
        validation=0.05,
        split="document",
        copies="keep",  # training documents that are copies of held-out ones: keep (they are counted), drop
        seq_len=256,
        # `chat`: the name of a template whose markers the tokenizer gets
        tokenizer=dict(kind="bpe", vocab_size=8192, path="", mask=False, sentinels=0, chat=""),
        max_bad_lines=100,  # lines or files in preparation, and rows in training, that may be unreadable
        chat=dict(template="auto", system=""),  # templates by name: data/tokens/templates.py
        pairs=dict(source="source", target="target", prefix=""),  # columns
        labels=dict(kind="class", text="", label="", pair="", split="", read=""),  # data/examples/labels.py
        augment=dict(delete=0.0, swap=0.0, mask=0.0),  # shares of the words of examples
        corruption=dict(kind="none"),  # none, masked, spans: their fields are in data/rows/corrupt.py
    ),
    log_every=10,
    eval_every=200,
    eval_rows=512,  # held-out rows of each source per evaluation; 0: all
    checkpoint_every=200,  # 0: no checkpoint is saved, not even at the end
    keep_last=2,
    keep_best=1,  # by config.early_stopping.metric
    verify_checkpoints="full",  # before a run continues from one: full: every byte; sampled: some bytes; off
    # Ends a run after `patience` evaluations in a row (0: never) that did not improve by more than `min_delta`.
    early_stopping=dict(metric="validation/loss", patience=0, min_delta=0.0),
    # Grades answers to held-out examples (chat, pairs) at each evaluation: bleu,chrf,rouge,exact_match,f1. `rows` of 0
    # means all; `tokenizer` is the one of BLEU, zh for Chinese.
    grade=dict(metrics="", rows=64, max_new_tokens=64, tokenizer="13a"),
    # An update is skipped if it is not finite, or if its loss or gradient norm is a spike: more than `spike` robust
    # deviations above the median of the last 64 (0: never). `max_bad_steps` skipped updates in a row end the run, or
    # roll it back to its last checkpoint, from where it continues with the data after them.
    spike=10.0,
    max_bad_steps=10,
    on_bad_steps="stop",  # stop, roll_back
    # If a phase (data, step, evaluate, save, restore) takes longer than `seconds` and than 20 times its longest time so
    # far, its name and the stack traces of all threads are logged, and the process ends `end_after` seconds later. 0:
    # never. `first_seconds` applies to the first time, which compiles. If one of several processes does not reach a
    # save or a restore within `barrier` seconds, it is named.
    watchdog=dict(seconds=600.0, first_seconds=3600.0, end_after=300.0, barrier=600.0),
    check_every=0,  # every so many steps, compute the step twice and compare replicas, bit for bit; 0: never
    profile_start=10,
    profile_steps=0,
)
