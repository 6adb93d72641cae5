"""Names the tests that pass on torch and not on steprule: compare.py TORCH STEPRULE, two files of outcomes."""

import sys


def outcomes(path: str) -> dict[str, str]:
    with open(path) as file:
        return {name: outcome for outcome, name in (line.rstrip("\n").split("\t") for line in file)}


def main() -> int:
    on_torch, on_steprule = map(outcomes, sys.argv[1:])
    wanted = [name for name in on_steprule if on_torch.get(name) == "passed"]
    lost = [name for name in wanted if on_steprule[name] != "passed"]
    for name in lost:
        print(on_steprule[name], name)
    print(f"{len(wanted) - len(lost)} of the {len(wanted)} that pass on torch pass on steprule")
    return 1 if lost or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
