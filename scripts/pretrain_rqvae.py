"""Pre-train the tokenizer: python scripts/pretrain_rqvae.py --config config/beauty.yaml [--key=value ...]

Options of this stage begin with rqvae_ (rqvae_epochs, rqvae_lr, ...); those of data and tokenizer
concern both stages.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main
from pretrain import pretrain
from readers import read_dataset
from utils import log_to, problems_exit_2


def run(argv: list[str]) -> None:
    cfg = main.configuration(argv, __doc__, main.check_data)
    log_to(None, main=True)
    path = pretrain(cfg, read_dataset(cfg.data))
    print(f"tokenizer: {path}")


if __name__ == "__main__":
    with problems_exit_2():
        run(sys.argv[1:])
