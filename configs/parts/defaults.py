"""What every training run has: the fields of a config, with defaults. base.py makes configs of them.

A recorded run that is older than a field has the field's default here (launch/run/defaults.py), so a new field gets the
value that says what runs did before it; a config that wants another one says so itself. The blocks `objective`, `adapt`
and `data.corruption` have other fields too, by the name in them; those have their defaults where they are read, and so
have the fields of `model` that describe its architecture.
"""

DEFAULTS: dict = dict(
    seed=0,
    # A workdir, trained or imported, whose parameters, architecture and tokenizer to begin with; and which of its
    # checkpoints: a number, latest, best; empty: best if it ended early, else latest.
    init_from="",
    init_step="",
    steps=1000,
    batch_size=16,  # rows of the global batch
    accumulate=1,  # micro-batches a step
    mesh=dict(data=-1, stage=1, fsdp=1, expert=1, context=1, tensor=1),  # devices; -1: the rest
    model=dict(
        remat="none",  # none, dots, full: keep less of a layer, compute it again
        scan_unroll=0,  # layers an iteration of the scan over them; 0: by platform
        dtype="bfloat16",
        param_dtype="float32",
        dropout=0.0,
        embedding_noise=0.0,  # NEFTune's alpha, for fine-tuning: 5 to 15
        attention="auto",  # by platform, or splash, cudnn, xla, blocked: model/attention/attend.py
        context="gather",  # over mesh.context: gather all keys and values, or pass them round in a ring
        pipeline_slots=0,  # over mesh.stage: micro-batches that begin at each stage; 0: up to 4
        pipeline_groups=1,  # groups of layers of a stage; from 2 on of the circular schedule
    ),
    # What trains. Patterns are regular expressions over parameters' names, see model/patterns.py.
    train_only=(),  # ((pattern, bool), ...): the first one found decides; empty: everything
    adapt=dict(method="none"),  # none, lora, adapter, prompt: see configs/lora.py and the others
    optimizer=dict(
        name="adamw",  # adamw, adam, sgd, adafactor, lion, muon
        learning_rate=3e-4,
        schedule="cosine",  # cosine, constant, wsd
        warmup_steps=100,
        final=0.1,  # of the peak, at the end
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        weight_decay=0.1,  # times the learning rate, whatever the optimizer
        decay=(("norm|bias", False), (".*", True)),  # first pattern found in a parameter's name decides
        rates=((".*", 1.0),),  # factors of the learning rate, by patterns as well
        clip_norm=1.0,
        offload=False,  # its state lies in the hosts' memory between steps
        correction_rate=1e-3,  # of the biases that balance experts (model.experts.correction)
    ),
    # The last two are of experts, see train/objectives/language.py.
    objective=dict(name="language", z_loss=0.0, label_smoothing=0.0, balance_loss=0.0, router_z_loss=0.0),
    data=dict(
        dir="runs/data",  # prepared once, shared by all runs
        # (source, weight; 0: only evaluated): stdlib, files:GLOB, tfds:NAME; examples: chat:GLOB, pairs:GLOB
        sources=(("stdlib", 1.0),),
        path="",  # one more source, of examples, weight 1
        format="chat",  # what data.path holds: chat, pairs
        validation=0.05,
        split="document",
        copies="keep",  # training documents that are copies of held-out ones: keep (they are counted), drop
        seq_len=256,
        # `chat`: a template by name, whose markers it gets
        tokenizer=dict(kind="bpe", vocab_size=8192, path="", mask=False, sentinels=0, chat=""),
        max_bad_lines=100,  # lines or files while preparing, rows while training, that can't be read
        chat=dict(template="auto", system=""),  # templates by name: data/tokens/templates.py
        pairs=dict(source="source", target="target", prefix=""),  # columns
        labels=dict(kind="class", text="", label="", pair="", split="", read=""),  # data/examples/labels.py
        augment=dict(delete=0.0, swap=0.0, mask=0.0),  # shares of the words of examples
        corruption=dict(kind="none"),  # none, masked, spans: their fields are in data/rows/corrupt.py
    ),
    log_every=10,
    eval_every=200,
    eval_rows=512,  # held-out rows of each source that an evaluation takes; 0: all
    checkpoint_every=200,  # 0: nothing is saved, not even at the end
    keep_last=2,
    keep_best=1,  # by config.early_stopping.metric
    verify_checkpoints="full",  # before one is continued: every byte; sampled: some bytes; off
    # Ends a run after so many evaluations in a row (0: never) that were not better by more than min_delta.
    early_stopping=dict(metric="validation/loss", patience=0, min_delta=0.0),
    # Answers to held-out examples (chat, pairs), graded at each evaluation: bleu,chrf,rouge,exact_match,f1. Rows of 0
    # are all; the tokenizer is of BLEU, for Chinese zh.
    grade=dict(metrics="", rows=64, max_new_tokens=64, tokenizer="13a"),
    # Updates that are not finite, or whose loss or gradient norm is a spike (so many robust deviations above the median
    # of the last 64; 0: never), are left out. So many in a row end the run, or roll it back: it goes on from its last
    # checkpoint with the data behind them.
    spike=10.0,
    max_bad_steps=10,
    on_bad_steps="stop",  # stop, roll_back
    # A phase (data, step, evaluate, save, restore) that takes longer than this and than 20 times its longest so far is
    # named, and what all threads do; the process ends `end_after` seconds later. 0: never. First times compile.
    # Of several processes, one that does not come to a save or to restoring within `barrier` seconds is named.
    watchdog=dict(seconds=600.0, first_seconds=3600.0, end_after=300.0, barrier=600.0),
    check_every=0,  # steps; each such step is computed twice, and replicas are compared, bit for bit; 0: none
    profile_start=10,
    profile_steps=0,
)
