"""The metrics of answers that a model sampled, and of policies: what they mean, and the plots of their reports."""

from train.objectives.objective import Curve, Headline

# The metrics of training and evaluations, with explanations: of sampled answers, and what a policy has beside them.
SAMPLED_MEANINGS = {
    "reward": "mean over answers, without the penalty for the distance to the reference",
    "reward/*": "mean of one reward",
    "gold": "mean score of the reward model that is only watched",
    "win_rate": "answers with a higher reward than those of the model that the run began with; equal ones count half",
    "length": "tokens per answer",
    "truncated": "share of answers that reached max_new_tokens",
    "equal_groups": "share of prompts whose answers all have the same reward, which teach nothing",
    "left_out": "share of answers from which nothing is learned",
}
MEANINGS = SAMPLED_MEANINGS | {
    "kl": "KL divergence from the reference in nats per answer",
    "entropy": "nats per token",
    "clip_fraction": "share of tokens whose ratio is clipped",
    "sampler_gap": "mean difference of a token's log-probability between the sampler and the trainer",
    "explained_variance": "share of the variance of returns that the critic's values explain",
}
SAMPLED_HEADLINE = Headline("reward", "mean reward", "of sampled answers to held-out prompts")
SAMPLED_CURVES = (
    Curve(("reward",), "Reward"),
    Curve(("reward/*",), "Reward by function"),
    Curve(("win_rate",), "Win rate against the start", baselines={0.5: "equal"}),
    Curve(("length",), "Length of answers"),
    Curve(
        ("truncated", "equal_groups", "left_out"),
        "Shares of answers",
        "answers that were cut, teach nothing or are left out",
    ),
)
CURVES = (
    *SAMPLED_CURVES,
    Curve(("kl",), "KL to the reference"),
    Curve(("entropy",), "Entropy"),
    Curve(("clip_fraction",), "Clipped tokens"),
    Curve(("sampler_gap",), "Sampler against trainer"),
    Curve(("value_loss",), "Loss of the critic", "half the squared error of its values"),
    Curve(("explained_variance",), "Variance that the critic explains"),
    Curve(("kl_coefficient",), "Coefficient of the KL", "adapted to kl_target"),
)
