"""Shows a Monte Carlo whose model is a class in a package of its own, with a data file in it: `python risk.py`.

Nothing of it has to be where the tasks run: the package goes along by itself, and they read the file there. What they
return are instances of the package's class, and its own exception would come back as that class.
"""

import sys

from market import Loss, Market

import p2pgrid as pg

PATHS, DAYS, CHECKED = 2_000, 30, 200


def main() -> int:
    market = Market(DAYS, seed=7)
    with pg.Grid() as grid:
        losses = sorted(grid.map(market.year, range(PATHS)))
    at_risk = losses[int(0.95 * PATHS)]
    print(f"in one year of twenty more than {at_risk.value:.1%} is lost (path {at_risk.path} of {PATHS})")

    serial = sorted(map(market.year, range(CHECKED)))
    same = serial == sorted(loss for loss in losses if loss.path < CHECKED)
    print("as the serial run" if same else "DIFFERENT from the serial run")
    return 0 if same and all(type(loss) is Loss for loss in losses) else 1


if __name__ == "__main__":
    sys.exit(main())
