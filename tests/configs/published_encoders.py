"""config.json of released encoders, in the form of published.py."""

from tests.configs.released import released

_DIMS = "hidden_size num_hidden_layers num_attention_heads intermediate_size"
_BERT = dict(vocab_size=30522, max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu")
_BERT |= dict(architectures=["BertForMaskedLM"], pad_token_id=0)
_CASED = dict(vocab_size=28996)
_ROBERTA = dict(
    vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="gelu"
)
_ROBERTA |= dict(architectures=["RobertaForMaskedLM"], pad_token_id=1)
_ALBERT = _BERT | dict(vocab_size=30000, embedding_size=128, num_hidden_groups=1, inner_group_num=1)
_ALBERT |= dict(architectures=["AlbertForMaskedLM"], hidden_act="gelu_new")

CONFIGS = {
    **released(
        "bert",
        _DIMS,
        _BERT,
        {
            "bert_base_uncased": (768, 12, 12, 3072),
            "bert_large_uncased": (1024, 24, 16, 4096),
            "bert_base_cased": (768, 12, 12, 3072, _CASED),
            "bert_large_cased": (1024, 24, 16, 4096, _CASED),
        },
    ),
    **released(
        "roberta",
        _DIMS,
        _ROBERTA,
        {"roberta_base": (768, 12, 12, 3072), "roberta_large": (1024, 24, 16, 4096)},
    ),
    **released(
        "albert",
        _DIMS,
        _ALBERT,
        {
            "albert_base": (768, 12, 12, 3072),
            "albert_large": (1024, 24, 16, 4096),
            "albert_xlarge": (2048, 24, 16, 8192),
            "albert_xxlarge": (4096, 12, 64, 16384),
        },
    ),
}
