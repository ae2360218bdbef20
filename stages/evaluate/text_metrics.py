"""Scores of generated text against references, one or several each: BLEU, METEOR, ROUGE-L, CIDEr, exact match.

`references` holds a list of at least one text for each hypothesis. All but exact match and accuracy expect text that is
tokenized already (java.tokenize), words joined by blanks. BLEU and METEOR of a corpus are functions of summed
statistics: a bootstrap adds up rows and never scores text again.
"""

import string
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

EXACT_MATCH = "lower case, ASCII punctuation removed, white space collapsed"
PROCESSED = 'lower case, each of .!"()*#:;~ a blank, white space collapsed'
_SIGNS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# METEOR 1.5's parameters for English: weights of exact, stem, synonym and paraphrase matches; alpha, beta,
# gamma; and delta, the weight of content words against function words.
_MATCHES = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75


def bleu_statistics(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """Sufficient statistics of BLEU, one row a hypothesis: (n, 10) float64.

    Columns: words of the hypothesis, words of the reference whose length is closest (of two the shorter), n-grams
    (n = 1 to 4) of the hypothesis, and how many of them match.
    """
    rows = []
    for texts, hypothesis in zip(references, hypotheses, strict=True):
        found = cook_test(hypothesis, cook_refs(texts), eff="closest")
        rows.append([found["testlen"], found["reflen"], *found["guess"], *found["correct"]])
    return np.array(rows, np.float64).reshape(-1, 10)


def bleu(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002) of rows of summed statistics: (..., 10) -> (..., 4).

    Without smoothing, with pycocoevalcap's tiny numbers against division by zero.
    """
    length, reference, guess, correct = np.split(statistics, [1, 2, 6], axis=-1)
    product = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=-1)
    ratio = (length + 1e-15) / (reference + 1e-9)
    return product ** (1 / np.arange(1, 5)) * np.exp(1 - 1 / np.minimum(ratio, 1))


def meteor(statistics: np.ndarray) -> np.ndarray:
    """METEOR 1.5 of rows of summed statistics from java.meteor_statistics: (..., 23) -> (...)."""
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 4)
    length, reference, function, reference_function = np.moveaxis(statistics[..., :4], -1, 0)
    chunks, matched, reference_matched = np.moveaxis(statistics[..., 20:], -1, 0)

    def weighted(content: np.ndarray, function: np.ndarray) -> np.ndarray:
        return _DELTA * content + (1 - _DELTA) * function

    with np.errstate(divide="ignore", invalid="ignore"):  # nothing matched, or nothing there: 0 / 0
        precision = (_MATCHES * weighted(matches[..., 0], matches[..., 2])).sum(-1)
        precision = precision / weighted(length - function, function)
        recall = (_MATCHES * weighted(matches[..., 1], matches[..., 3])).sum(-1)
        recall = recall / weighted(reference - reference_function, reference_function)
        mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
        fragmentation = 2 * chunks / (matched + reference_matched)
        score = mean * (1 - _GAMMA * fragmentation**_BETA)
    return np.nan_to_num(score, nan=0.0)


def rouge_l(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """ROUGE-L (Lin, 2004), F with beta 1.2, of each hypothesis: (n,) float64. The corpus score is the mean.

    Of several references the best precision and the best recall count, as pycocoevalcap has it.
    """
    scorer = Rouge()
    pairs = zip(references, hypotheses, strict=True)
    return np.array([scorer.calc_score([hypothesis], list(texts)) for texts, hypothesis in pairs], np.float64)


def cider(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """CIDEr (Vedantam et al., 2015) of each hypothesis, 0 to 10: (n,) float64. The corpus score is the mean.

    Document frequencies are those of the references given: a score depends on what it is scored with.
    """
    if not any(text.split() for texts in references for text in texts):  # no document: pycocoevalcap would break
        return np.zeros(len(references))
    pairs = list(enumerate(zip(references, hypotheses, strict=True)))
    _, scores = Cider().compute_score({i: list(r) for i, (r, _) in pairs}, {i: [h] for i, (_, h) in pairs})
    return np.asarray(scores, np.float64)


def normalise(text: str) -> str:
    """A text as exact match compares it: see EXACT_MATCH."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def exact_match(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
    """1.0 where the normalised text equals one of its references', else 0.0: (n,) float64."""
    pairs = zip(references, hypotheses, strict=True)
    return np.array([normalise(text) in map(normalise, texts) for texts, text in pairs], np.float64)


def processed(text: str) -> str:
    """A text as MA-LMM's text processor (LAVIS's blip_caption) leaves it: see PROCESSED."""
    return " ".join(text.lower().translate(_SIGNS).split())


def accuracy(references: Sequence[Sequence[str]], hypotheses: Sequence[str], first_word: bool = False) -> np.ndarray:
    """1.0 where the processed text equals one of its references', else 0.0: (n,) float64. For answers and class names.

    first_word: the hypothesis's first word alone is compared, as MA-LMM's code does for MSVD-QA and MSRVTT-QA.
    """
    found = []
    for texts, text in zip(references, hypotheses, strict=True):
        text = processed(text)
        found.append((text.split(" ")[0] if first_word else text) in map(processed, texts))
    return np.array(found, np.float64)
