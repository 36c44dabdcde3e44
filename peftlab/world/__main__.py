"""python -m peftlab.world pretrain | tasks | sample | cards: everything in data/ is made by these commands."""
import argparse

from ..paths import data


def main(argv=None):
    """The command line; returns nothing, prints what it made."""
    parser = argparse.ArgumentParser(prog="python -m peftlab.world", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    p = verbs.add_parser("pretrain", help="train an embedded backbone (goes on where it was interrupted)")
    p.add_argument("name")
    p.add_argument("--steps", type=int, default=6000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="folder (default: data/backbones/NAME)")
    p.add_argument("--threads", type=int, default=1)
    p = verbs.add_parser("tasks", help="write the task files")
    p.add_argument("--out", help="folder (default: data/tasks)")
    p = verbs.add_parser("sample", help="print documents of the corpus")
    p.add_argument("-n", type=int, default=10)
    p.add_argument("--seed", type=int, default=0)
    verbs.add_parser("cards", help="write data/README.md from the cards")
    args = parser.parse_args(argv)
    VERBS[args.verb](args)


def pretrain(args):
    """Train, save, and say where."""
    import torch

    from .pretrain import pretrain
    torch.set_num_threads(args.threads)
    out = args.out or data() / "backbones" / args.name
    card = pretrain(args.name, out, steps=args.steps, seed=args.seed, say=lambda text: print(text, flush=True))
    print(f"{out}: held-out loss {card['held_out_loss']}, {card['seconds']} s")


def tasks(args):
    """Write every embedded task."""
    from . import reviews
    folder = reviews.write(args.out or data() / "tasks")
    print(folder)


def sample(args):
    """Print some documents."""
    from .corpus import documents
    print("\n".join(documents(args.n, args.seed)))


def cards(args):
    """Write the table of what data/ holds."""
    from .card import write_table
    print(write_table(data()))


VERBS = dict(pretrain=pretrain, tasks=tasks, sample=sample, cards=cards)

if __name__ == "__main__":
    main()
