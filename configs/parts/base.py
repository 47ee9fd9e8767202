"""What every training run has: the fields of a config, with defaults. The experiments change them.

Every field can be set on the command line: --config.optimizer.learning_rate=3e-4
"""

from ml_collections import ConfigDict

from configs.parts.meshes import meshed
from configs.sizes import sized


def base(argument: str, sizes: dict[str, dict], methods: tuple[str, ...] = ()) -> ConfigDict:
    """A run of the model that `argument` names: one of `sizes`, and after an @, if there is one, one of MESHES.

    Args:
      methods: what the argument could have been besides.
    """
    size, *mesh = argument.split("@", 1)
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # a workdir, trained or imported, whose parameters, architecture and tokenizer to begin with
    config.init_step = (
        ""  # which of its checkpoints: a number, latest, best; empty: best if it ended early, else latest
    )
    config.steps = 1000
    config.batch_size = 16  # rows of the global batch
    config.accumulate = 1  # micro-batches a step
    config.mesh = ConfigDict(dict(data=-1, stage=1, fsdp=1, expert=1, context=1, tensor=1))  # devices; -1: the rest
    config.mesh.update(meshed(*mesh) if mesh else {})

    config.model = ConfigDict(sized(size, sizes, methods))
    config.model.remat = "none"  # none, dots, full: keep less of a layer, compute it again
    config.model.scan_unroll = 0  # layers an iteration of the scan over them; 0: by platform
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"
    config.model.dropout = 0.0
    config.model.embedding_noise = 0.0  # NEFTune's alpha, for fine-tuning: 5 to 15
    config.model.attention = "auto"  # by platform, or splash, cudnn, xla, blocked: model/attention/attend.py
    config.model.context = "gather"  # over mesh.context: gather all keys and values, or pass them round in a ring
    config.model.pipeline_slots = 0  # over mesh.stage: micro-batches that begin at each stage; 0: up to 4
    config.model.pipeline_groups = 1  # groups of layers of a stage; from 2 on of the circular schedule

    # What trains. Patterns are regular expressions over parameters' names, see model/patterns.py.
    config.train_only = ()  # ((pattern, bool), ...): the first one found decides; empty: everything
    config.adapt = ConfigDict(dict(method="none"))  # none, lora, adapter, prompt: see configs/lora.py and the others

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, adam, sgd, adafactor, lion, muon
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = "cosine"  # cosine, constant, wsd
    config.optimizer.warmup_steps = 100
    config.optimizer.final = 0.1  # of the peak, at the end
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.1  # times the learning rate, whatever the optimizer
    config.optimizer.decay = (("norm|bias", False), (".*", True))  # first pattern found in a parameter's name decides
    config.optimizer.rates = ((".*", 1.0),)  # factors of the learning rate, by patterns as well
    config.optimizer.clip_norm = 1.0
    config.optimizer.offload = False  # its state lies in the hosts' memory between steps
    config.optimizer.correction_rate = 1e-3  # of the biases that balance experts (model.experts.correction)

    config.objective = ConfigDict(dict(name="language", z_loss=0.0, label_smoothing=0.0))
    config.objective.update(balance_loss=0.0, router_z_loss=0.0)  # of experts, see train/objectives/language.py

    config.data = ConfigDict()
    config.data.dir = "runs/data"  # prepared once, shared by all runs
    # (source, weight; 0: only evaluated): stdlib, files:GLOB, tfds:NAME; examples: chat:GLOB, pairs:GLOB
    config.data.sources = (("stdlib", 1.0),)
    config.data.path = ""  # one more source, of examples, weight 1
    config.data.format = "chat"  # what data.path holds: chat, pairs
    config.data.validation = 0.05
    config.data.split = "document"
    config.data.copies = "keep"  # training documents that are copies of held-out ones: keep (they are counted), drop
    config.data.seq_len = 256
    config.data.tokenizer = ConfigDict(dict(kind="bpe", vocab_size=8192, path="", mask=False, sentinels=0))
    config.data.tokenizer.chat = ""  # a template by name, whose markers it gets
    config.data.max_bad_lines = 100  # lines or files while preparing, rows while training, that can't be read
    config.data.chat = ConfigDict(dict(template="auto", system=""))  # templates by name: data/tokens/templates.py
    config.data.pairs = ConfigDict(dict(source="source", target="target", prefix=""))  # columns
    config.data.labels = ConfigDict(
        dict(kind="class", text="", label="", pair="", split="", read="")
    )  # data/examples/labels.py
    config.data.augment = ConfigDict(dict(delete=0.0, swap=0.0, mask=0.0))  # shares of the words of examples
    config.data.corruption = ConfigDict(
        dict(kind="none")
    )  # none, masked, spans: their fields are in data/rows/corrupt.py

    config.log_every = 10
    config.eval_every = 200
    config.eval_rows = 512  # held-out rows of each source that an evaluation takes; 0: all
    config.checkpoint_every = 200  # 0: nothing is saved, not even at the end
    config.keep_last = 2
    config.keep_best = 1  # by config.early_stopping.metric
    config.verify_checkpoints = "full"  # before one is continued: every byte; sampled: some bytes; off
    # Ends a run after so many evaluations in a row (0: never) that were not better by more than min_delta.
    config.early_stopping = ConfigDict(dict(metric="validation/loss", patience=0, min_delta=0.0))
    # Answers to held-out examples (chat, pairs), graded at each evaluation.
    config.grade = ConfigDict(dict(metrics="", rows=64, max_new_tokens=64))  # bleu,chrf,rouge,exact_match,f1; 0: all
    config.grade.tokenizer = "13a"  # of BLEU; for Chinese zh
    # Updates that are not finite, or whose loss or gradient norm is a spike (so many robust deviations above the median
    # of the last 64; 0: never), are left out. So many in a row end the run, or roll it back: it goes on from its last
    # checkpoint with the data behind them.
    config.spike = 10.0
    config.max_bad_steps = 10
    config.on_bad_steps = "stop"  # stop, roll_back
    # A phase (data, step, evaluate, save, restore) that takes longer than this and than 20 times its longest so far is
    # named, and what all threads do; the process ends `end_after` seconds later. 0: never. First times compile.
    # Of several processes, one that does not come to a save or to restoring within `barrier` seconds is named.
    config.watchdog = ConfigDict(dict(seconds=600.0, first_seconds=3600.0, end_after=300.0, barrier=600.0))
    config.check_every = 0  # steps; each such step is computed twice, and replicas are compared, bit for bit; 0: none
    config.profile_start = 10
    config.profile_steps = 0
    return config
