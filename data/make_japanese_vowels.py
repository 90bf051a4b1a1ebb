"""Writes japanese_vowels_train.csv and japanese_vowels_test.csv from the copy of the data set that aeon ships.

    pip install --no-deps --target /tmp/aeon aeon==1.6.0 && python data/make_japanese_vowels.py /tmp/aeon/aeon

A row is a time step: sequence (from 0 in each file), f1 to f12, label (the speaker, 1 to 9). The numbers have the
same digits as in aeon: the original has six decimals, without trailing zeros.
"""

import csv
import pathlib
import sys

HERE = pathlib.Path(__file__).parent


def sequences(text):
    """Returns the twelve series of numbers of each line, as text, and its label."""
    lines = text[text.index("@data") :].splitlines()[1:]
    for line in lines:
        *dimensions, label = line.split(":")
        yield [dimension.split(",") for dimension in dimensions], label


def main(aeon):
    for part in ("TRAIN", "TEST"):
        source = pathlib.Path(aeon) / f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
        target = HERE / f"japanese_vowels_{part.lower()}.csv"
        with open(target, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["sequence", *(f"f{i}" for i in range(1, 13)), "label"])
            for i, (dimensions, label) in enumerate(sequences(source.read_text())):
                assert len(dimensions) == 12
                for step in zip(*dimensions, strict=True):
                    writer.writerow([i, *step, label])
        print(f"{target.name}: {i + 1} sequences, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
