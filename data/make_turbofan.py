"""Writes turbofan_train.csv and turbofan_test.csv from NASA's files train_FD001.txt, test_FD001.txt and RUL_FD001.txt.

    python data/make_turbofan.py FOLDER      # the folder of these files

The C-MAPSS data set (public domain): A. Saxena, K. Goebel, D. Simon and N. Eklund 2008, Damage propagation modeling for
aircraft engine run-to-failure simulation; NASA Prognostics Data Repository, "Turbofan Engine Degradation Simulation".
The CSV files are not kept here: they take 4 MB.

A row is a flight of an engine: unit, cycle, three settings, 21 sensors, and rul, the flights until its failure, at most
125 as usual for this data set.
"""

import csv
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
NAMES = ["unit", "cycle", *(f"setting{i}" for i in range(1, 4)), *(f"sensor{i}" for i in range(1, 22)), "rul"]
MOST = 125


def rows(path):
    """Returns the rows of numbers of a file, as text. Some copies have a header."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [row for row in lines if row and row[0].isdigit()]


def write(name, table, left):
    """Writes a table. left: the flights that each engine has left after its last row."""
    last = {}
    for unit, cycle, *_ in table:
        last[unit] = max(last.get(unit, 0), int(cycle))
    target = HERE / f"turbofan_{name}.csv"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(NAMES)
        for unit, cycle, *sensors in table:
            rul = left[int(unit) - 1] + last[unit] - int(cycle)
            writer.writerow([f"u{unit}", cycle, *sensors[:24], min(rul, MOST)])
    print(f"{target.name}: {len(last)} engines, {len(table)} rows")


def main(folder):
    folder = pathlib.Path(folder)
    train = rows(folder / "train_FD001.txt")
    write("train", train, [0] * len({row[0] for row in train}))
    write("test", rows(folder / "test_FD001.txt"), [int(row[0]) for row in rows(folder / "RUL_FD001.txt")])


if __name__ == "__main__":
    main(*sys.argv[1:])
