"""Writes us_employment.csv from the copy of the data set that vega_datasets ships.

    pip install vega_datasets==0.9.0 && python data/make_us_employment.py

A row is a month of a sector: month, sector, jobs (in thousands). The sums over sectors are left out.
"""

import csv
import pathlib

from vega_datasets import local_data

SUMS = ("nonfarm", "private", "nonfarm_change")


def main():
    table = local_data.us_employment()
    target = pathlib.Path(__file__).parent / "us_employment.csv"
    with open(target, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["month", "sector", "jobs"])
        for sector in (name for name in table.columns if name not in ("month", *SUMS)):
            for month, jobs in zip(table.month, table[sector], strict=True):
                writer.writerow([str(month)[:10], sector, jobs])
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
