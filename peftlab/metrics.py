"""Metrics: what is predicted and what is true, as two equally long lists, to one number."""

import math


def accuracy(p, y):
    return sum(a == b for a, b in zip(p, y, strict=True)) / len(y)


def f1(p, y):
    from sklearn.metrics import f1_score

    return float(f1_score(y, p, average="binary" if set(y) | set(p) <= {0, 1} else "macro", zero_division=0))


def matthews(p, y):
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(y, p))


def pearson(p, y):
    from scipy.stats import pearsonr

    return 0.0 if len(set(p)) < 2 or len(set(y)) < 2 else float(pearsonr(p, y)[0])


def spearman(p, y):
    from scipy.stats import spearmanr

    return 0.0 if len(set(p)) < 2 or len(set(y)) < 2 else float(spearmanr(p, y)[0])


def correlation(p, y):
    return (pearson(p, y) + spearman(p, y)) / 2


def bleu(p, y):
    """Corpus BLEU (0 to 100) of texts; y: a text, or a list of right ones, for each."""
    import sacrebleu

    right = [several(one) for one in y]
    ranks = range(max(map(len, right)))  # sacrebleu takes all first references, then all second ones, ...
    right = [[one[i] if i < len(one) else None for one in right] for i in ranks]
    return sacrebleu.corpus_bleu(p, right, force=True).score  # force: no warning of marks that stand apart


def rouge(p, y):
    """Mean ROUGE-L (0 to 100) of texts; y: a text, or a list of right ones of which the nearest counts, for each."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    found = [scorer.score_multi(several(one), text)["rougeL"].fmeasure for text, one in zip(p, y, strict=True)]
    return 100 * sum(found) / len(found)


def perplexity(p, y):
    """p: log-likelihoods of the tokens; y is not needed."""
    return math.exp(min(-sum(p) / len(p), 700))


def several(right):
    """A list of right texts, also of a single one."""
    return [right] if isinstance(right, str) else list(right)


SCORES = {
    f.__name__: f for f in (accuracy, f1, matthews, correlation, pearson, spearman, bleu, rouge, perplexity)
} | dict(exact_match=accuracy)
TEXTS = ("bleu", "rouge")  # these compare generated texts with all right ones
GENERATION = ("exact_match", *TEXTS, "perplexity")
METRICS = dict(
    classification=("accuracy", "f1", "matthews"),
    regression=("correlation", "pearson", "spearman"),
    lm=GENERATION,
    seq2seq=GENERATION,
)
