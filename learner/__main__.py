"""``torchrun ... -m learner CONFIG.toml [--section.key value]``: one rank of the learner; see ``learner.process``."""

from common.process import main
from learner.process import learn

if __name__ == "__main__":
    main(learn)
