"""The fields that every training run has, with their defaults. base.py builds configs from them.

A run that was recorded before a field existed gets the default from here when it continues (launch/run/defaults.py).
So the default of a new field must be the value that matches what runs did before; a config that wants another value
sets it. config.objective, config.adapt and config.data.corruption have further fields that depend on their name, method
or kind; their defaults stand where they are read. The same holds for the architecture fields of config.model.

Patterns are regular expressions over parameters' names (model/patterns.py). In a list of (pattern, value) pairs the
first pattern that is found in a name decides.
"""

DEFAULTS: dict = dict(
    seed=0,  # of initialization, dropout and the order of the data
    # Start from the parameters, architecture and tokenizer of this workdir, which may be trained or imported.
    init_from="",
    # Which checkpoint of init_from: a step number, latest or best. Empty: best if that run stopped early, else latest.
    init_step="",
    steps=1000,  # optimizer steps of the whole run
    batch_size=16,  # sequences per step, over all devices and micro-batches
    # Micro-batches per step. Their gradients are summed, so memory falls and the result stays that of the whole batch.
    accumulate=1,
    # Devices along each axis of the mesh; -1 takes the remaining devices. The axes are explained in model/axes.py.
    mesh=dict(data=-1, stage=1, fsdp=1, expert=1, context=1, tensor=1),
    model=dict(
        # Activation checkpointing. none: keep all activations. dots: keep only the products with weights. full: keep
        # only the input of each layer. The backward pass recomputes the rest, which costs time and saves memory.
        remat="none",
        scan_unroll=0,  # layers per iteration of the scan over layers; 0: a default for the platform
        dtype="bfloat16",  # of activations and matmuls
        param_dtype="float32",  # of parameters, and so of the optimizer state
        dropout=0.0,  # in training only
        embedding_noise=0.0,  # alpha of NEFTune (arXiv:2310.05914), for fine-tuning: 5 to 15; 0: no noise
        # Attention implementation: auto (best for the platform), splash, cudnn, xla or blocked
        # (model/attention/attend.py).
        attention="auto",
        # How a sequence that is split over mesh.context attends. gather: all-gather the keys and values. ring: pass
        # them around in a ring, which needs less memory.
        context="gather",
        # Pipeline parallelism over mesh.stage: micro-batches that start at each stage (0: up to 4), and groups of
        # layers per stage (2 or more use the circular schedule).
        pipeline_slots=0,
        pipeline_groups=1,
    ),
    # Which parameters train: ((pattern, bool), ...). Empty: all.
    train_only=(),
    # Parameter-efficient fine-tuning: none, lora, adapter or prompt. configs/parts/methods.py has the other fields.
    adapt=dict(method="none"),
    optimizer=dict(
        name="adamw",  # adamw, adam, sgd, adafactor, lion, muon
        learning_rate=3e-4,  # peak, reached after the warm-up
        schedule="cosine",  # cosine, constant, wsd (warm-up, stable, decay); see train/optimizer.py
        warmup_steps=100,  # linear warm-up; must be less than steps
        final=0.1,  # learning rate at the end, as a fraction of the peak
        beta1=0.9,  # decay of the first moment, or of the momentum (sgd, muon); adafactor does not use it
        beta2=0.95,  # decay of the second moment; sgd and adafactor do not use it
        epsilon=1e-8,  # only adam and adamw use it
        weight_decay=0.1,  # decoupled: each step subtracts learning rate x weight_decay x parameter, for all optimizers
        # (pattern, whether it decays) pairs. Empty: all decay but norms, biases and the like (train/optimizer.py).
        decay=(("norm|bias", False), (".*", True)),
        rates=((".*", 1.0),),  # (pattern, factor of the learning rate) pairs
        clip_norm=1.0,  # limit of the global gradient norm; 0: no clipping
        # True keeps the optimizer state in host memory between steps. It saves device memory and costs two transfers of
        # the state per step.
        offload=False,
        # How far the biases that balance experts move per step (arXiv:2412.19437); read if model.experts.correction.
        correction_rate=1e-3,
        critic_rate=1.0,  # factor of the learning rate of a critic (config.objective.critic)
    ),
    # What is minimized: language, labels, preference, kto, reward or policy. z_loss and label_smoothing are explained
    # in train/losses.py. The last two are coefficients of the losses of expert routers: train/objectives/routing.py.
    objective=dict(name="language", z_loss=0.0, label_smoothing=0.0, balance_loss=0.0, router_z_loss=0.0),
    data=dict(
        # Prepared data are stored here: tokenized once, then shared by all runs with the same settings.
        dir="runs/data",
        # (source, weight) pairs: stdlib (Python's standard library), files:GLOB, tfds:NAME; examples: chat:GLOB,
        # pairs:GLOB, labels:GLOB, preferences:GLOB, rankings:GLOB, unpaired:GLOB, prompts:GLOB. Rows are mixed in
        # proportion to the weights; a source with weight 0 is only evaluated.
        sources=(("stdlib", 1.0),),
        path="",  # one more source, with weight 1: a file or a glob of examples
        format="chat",  # what data.path holds: chat, pairs, labels, preferences, rankings, unpaired or prompts
        validation=0.05,  # fraction held out for evaluation
        # What is held out. document: whole documents, chosen by a hash of their names, so that the choice is the same
        # on every machine and new documents do not change it. tail: the end of each document, for one long text.
        split="document",
        # Training documents that are copies of held-out ones. keep: only count them. drop: remove them.
        copies="keep",
        seq_len=256,  # tokens per sequence
        tokenizer=dict(
            kind="bpe",  # bpe, byte, char: built from the training data (data/tokens/backends.py); file: load `path`
            vocab_size=8192,  # for bpe the number of tokens; for byte and char an upper limit, 0: none
            path="",  # a tokenizer.json, for kind file
            mask=False,  # True adds a mask token, for encoders
            sentinels=0,  # number of sentinel tokens to add, for span corruption
            chat="",  # a chat template of data/tokens/templates.py whose special tokens are added
        ),
        # Unreadable input that is tolerated: lines or files in preparation, rows in training. More of it is an error.
        max_bad_lines=100,
        # template: a name of data/tokens/templates.py, or auto: the tokenizer's own if it has one, else alpaca. system:
        # the system message of conversations that have none.
        chat=dict(template="auto", system=""),
        # Column names of sources of pairs, and a text that is put before each source text.
        pairs=dict(source="source", target="target", prefix=""),
        # Fields of labelled data. kind: class, number or token. All are explained in data/examples/labels.py.
        labels=dict(kind="class", text="", label="", pair="", split="", read=""),
        # Field names of preferences (data/examples/judged/comparisons.py); template and system as in `chat`.
        preferences=dict(
            prompt="prompt", chosen="chosen", rejected="rejected", answers="answers", template="auto", system=""
        ),
        # The same for rankings, which are for reward models. margin: the field of a pair that says how much better the
        # chosen answer is; lists have scores instead. Empty: margins are not read.
        rankings=dict(
            prompt="prompt",
            chosen="chosen",
            rejected="rejected",
            answers="answers",
            margin="",
            template="auto",
            system="",
        ),
        # Answers that are judged one at a time: label is true for good ones.
        unpaired=dict(prompt="prompt", completion="completion", label="label", template="auto", system=""),
        # Prompts, whose answers the model samples itself; all other fields are columns for rewards.
        prompts=dict(prompt="prompt", template="auto", system=""),
        # Augmentation: fractions of the words of examples that are deleted, swapped or masked, anew in each epoch.
        augment=dict(delete=0.0, swap=0.0, mask=0.0),
        # none (next-token prediction), masked (for encoders), spans (for encoder-decoders); data/rows/corrupt.py has
        # the fields of each kind.
        corruption=dict(kind="none"),
    ),
    # Intervals in steps; 0: never.
    log_every=10,
    eval_every=200,
    eval_rows=512,  # held-out sequences of each source per evaluation; 0: all
    checkpoint_every=200,  # with 0 nothing is saved, not even at the end
    keep_last=2,  # newest checkpoints that are kept
    keep_best=1,  # best checkpoints by early_stopping.metric that are kept besides
    # How checkpoints are compared with their hashes before they are read. full: every byte. sampled: names, sizes and
    # some of the bytes. off: not at all.
    verify_checkpoints="full",
    # The run stops after `patience` evaluations in a row without an improvement of more than min_delta; 0: never. The
    # metric also ranks checkpoints and the trials of a sweep. An evaluation counts only while the metric `bounded` is
    # at most `bound`, or at least `bound` where higher is better. Empty: every evaluation counts.
    early_stopping=dict(metric="validation/loss", patience=0, min_delta=0.0, bounded="", bound=0.0),
    # In each evaluation, generate answers to held-out examples (of chat, pairs or preferences) and score them. metrics
    # is a comma-separated list of bleu, chrf, rouge, exact_match and f1; empty: off. rows: number of examples; 0: all.
    # tokenizer: BLEU's; use zh for Chinese.
    grade=dict(metrics="", rows=64, max_new_tokens=64, tokenizer="13a"),
    # For data of the kind prompts: how the model's answers are sampled, and how they are handed over. A round has
    # batch_size x minibatches answers.
    rollouts=dict(
        group=8,  # answers to each prompt
        epochs=1,  # passes over a round
        minibatches=1,  # steps in each pass
        max_new_tokens=128,
        temperature=1.0,
        # Up to so many times, further prompts replace those whose answers all have the same reward (DAPO).
        resample=0,
        # What happens to answers that reach max_new_tokens. keep: nothing. mask: nothing is learned from them.
        # penalize: truncated_penalty is taken off their reward.
        truncated="keep",
        truncated_penalty=1.0,
        text_rows=0,  # rows of text in each batch, if config.objective.text is above 0
        rows=0,  # answers that are sampled at a time, which limits the memory; 0: all of a round
    ),
    # How answers are scored: the weighted sum of functions, (spec, weight) pairs as in train/README.md, plus the score
    # of a reward model (its workdir). gold: another reward model, which is only watched. seconds: the longest time of
    # one call of a function. on_error, for calls that fail: zero (its reward is 0), skip (the answer is left out) or
    # stop. packages: what code of an answer may import in the sandbox.
    reward=dict(functions=(), model="", gold="", seconds=30.0, on_error="zero", packages=()),
    # In each evaluation, answer prompts that should be refused and harmless ones that look like them, and count the
    # refusals by written rules (train/evals/refusals.py). prompts is a file or glob of prompts
    # (data/examples/judged/harm_prompts.py); empty: off.
    safety=dict(prompts="", max_new_tokens=64),
    # An update is skipped if it is not finite, or if its loss or gradient norm is a spike: more than so many robust
    # deviations above the median of the last 64 updates (train/guard.py). 0: spikes are not skipped.
    spike=10.0,
    max_bad_steps=10,  # skipped updates in a row that trigger on_bad_steps
    # stop: end the run. roll_back: go back to the last checkpoint and continue with the data after the bad batches.
    on_bad_steps="stop",
    # Ends a run that hangs, so that a cluster can restart it. A phase (data, step, evaluate, save, restore, barrier)
    # may take `seconds`, or 20 times its longest duration so far if that is more, and its first runs `first_seconds`,
    # because they compile. Then the stack traces of all threads are printed, and the process ends after `end_after`
    # more seconds. If several processes meet (before a save or a restore), one that does not arrive within `barrier`
    # seconds is reported. seconds=0 turns the watchdog off.
    watchdog=dict(seconds=600.0, first_seconds=3600.0, end_after=300.0, barrier=600.0),
    # Every so many steps, look for devices that compute wrong numbers: compute the step twice and compare all replicas
    # bit for bit. 0: never. It needs memory for a second state.
    check_every=0,
    profile_start=10,  # first step that the profiler traces
    profile_steps=0,  # number of steps that the profiler traces, into WORKDIR/profile; 0: none
)
