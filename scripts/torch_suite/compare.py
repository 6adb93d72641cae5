"""Names the tests that pass on torch and not on steprule: compare.py TORCH STEPRULE [--some], two files of
outcomes; with --some the second has a part of the tests."""

import sys


def outcomes(path: str) -> dict[str, str]:
    with open(path) as file:
        return {name: outcome for outcome, name in (line.rstrip("\n").split("\t") for line in file)}


def main() -> int:
    on_torch, on_steprule = map(outcomes, sys.argv[1:3])
    some = "--some" in sys.argv[3:]
    wanted = [name for name, outcome in on_torch.items() if outcome == "passed" and (name in on_steprule or not some)]
    lost = [name for name in wanted if on_steprule.get(name) != "passed"]
    for name in lost:
        print(on_steprule.get(name, "did not run"), name)
    print(f"{len(wanted) - len(lost)} of the {len(wanted)} that pass on torch pass on steprule")
    return 1 if lost or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
