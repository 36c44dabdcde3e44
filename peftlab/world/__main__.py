"""python -m peftlab.world pretrain | sweep | verify | sample | cards: everything in data/ is made by these commands."""

import argparse
import os
import sys

from ..errors import PeftlabError, exit_code
from ..paths import data


def main(argv=None):
    """The command line; prints what it made; returns the exit code: 0, 1 (the gate failed), or `errors.exit_code`'s."""
    parser = argparse.ArgumentParser(prog="python -m peftlab.world", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    p = verbs.add_parser("pretrain", help="train an embedded backbone (goes on where it was interrupted)")
    p.add_argument("name")
    p.add_argument("--steps", type=int, help="default: the number in the table of peftlab/world/architectures.py")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", help="cuda or cpu (default: the GPU when there is one)")
    p.add_argument("--out", help="folder (default: data/backbones/NAME)")
    p = verbs.add_parser("sweep", help="choose the learning rate of each method on validation")
    parallel(p)
    p = verbs.add_parser("verify", help="train the bench and check what it must show; exit status 1 when it does not")
    p.add_argument("--quick", action="store_true", help="repeat a few recorded runs, check the rest from the record")
    parallel(p)
    p = verbs.add_parser("sample", help="print documents of the corpus")
    p.add_argument("-n", type=int, default=10)
    p.add_argument("--seed", type=int, default=0)
    verbs.add_parser("cards", help="write data/README.md from the cards")
    args = parser.parse_args(argv)
    return exit_code(lambda: VERBS[args.verb](args))


def parallel(parser):
    """The options of what trains many runs."""
    parser.add_argument("--backbone", nargs="+", default=(), metavar="NAME", help="default: all that the bench has")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")


def pretrain(args):
    """Train, save, and say where. Up to four cores that no thread needs make the documents."""
    import torch
    from tqdm import tqdm

    from .pretrain import pretrain

    if args.threads < 1:
        raise PeftlabError(f"{args.threads} threads are too few; take 1 or more")
    torch.set_num_threads(args.threads)
    out = args.out or data() / "backbones" / args.name
    card = pretrain(
        args.name,
        out,
        steps=args.steps,
        seed=args.seed,
        device=args.device,
        workers=min(4, max(0, os.cpu_count() - args.threads)),
        say=lambda text: tqdm.write(text, file=sys.stderr),
    )
    print(f"{out}: held-out loss {card['held_out_loss']}, {card['seconds']} s")


def sweep(args):
    """Train with each rate and print the winners."""
    from .sweep import sweep

    sweep(names=args.backbone, jobs=args.jobs)


def verify(args):
    """Train, print the tables and the checks; the exit code tells whether all passed."""
    from .verify import verify

    return int(not verify(names=args.backbone, jobs=args.jobs, quick=args.quick))


def sample(args):
    """Print some documents."""
    from .corpus import documents

    print("\n".join(documents(args.n, args.seed)))


def cards(args):
    """Write the table of what data/ holds."""
    from .card import write_table

    print(write_table(data()))


VERBS = dict(pretrain=pretrain, sweep=sweep, verify=verify, sample=sample, cards=cards)

if __name__ == "__main__":
    sys.exit(main())
