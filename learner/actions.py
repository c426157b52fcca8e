"""What all ranks of the learner do together: the actions that every rank knows by name."""

from __future__ import annotations

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from common.config import Config
from common.net import rendezvous
from common.progress import Activity
from common.prompts import ChatTemplate
from learner.checkpoint import Checkpoints
from learner.export import export, export_adapters
from learner.gather_action import GatherAction
from learner.generation_settings import add_stop_ids, mend_sampling, try_to_save
from learner.rank_links import RankLinks
from learner.ranks import Action, Command
from learner.state import LEDGER_FILE, RunState
from learner.train.trainer import Trainer


class RankActions:
    """The actions of one rank; ``learner.ranks`` runs them on all of them.

    Args:
        checkpoints: where ``save`` writes to.
        links: with the other ranks.
        place: where rank 0 has announced the run's learner; None on the others, and without a rendezvous.

    Raises:
        FatalError: the model could not be exported when the training is done.

    Attributes:
        state: what a checkpoint keeps besides the weights. Rank 0 sets it once its run is built; None on the others.
    """

    def __init__(
        self,
        config: Config,
        trainer: Trainer,
        checkpoints: Checkpoints,
        tokenizer: PreTrainedTokenizerBase,
        links: RankLinks,
        place: rendezvous.Place | None,
    ) -> None:
        self._config, self._trainer, self._checkpoints = config, trainer, checkpoints
        self._tokenizer, self._place = tokenizer, place
        self._gather = GatherAction(config, trainer, links)
        self.state: RunState | None = None
        # The tokens that end the answers in training end those of the exported model, too.
        stop_ids = ChatTemplate(tokenizer, config.model).stop_ids
        model = trainer.policy.lm
        add_stop_ids(model, stop_ids)
        mend_sampling(model, config.model.path)
        try_to_save(model, config.model.path)

    def by_name(self) -> dict[str, Action]:
        """All actions, for ``Ranks``."""
        return {
            "train": lambda command: self._trainer.step(command.batch, command.number),
            "probe": lambda _: self._trainer.probe(),
            "gather": self._gather,
            "save": self._save,
            "export": lambda _: self._export(),
        }

    def _save(self, command: Command) -> None:
        config, trainer = self._config, self._trainer
        rendezvous.confirm(config.run, "learner", self._place)  # two learners must not write over each other
        snapshot, queued = self.state.capture() if self.state is not None else (None, [])
        self._checkpoints.save(
            trainer.policy,
            trainer.optimizer,
            command.number,
            {} if snapshot is None else snapshot.as_json(),
            queued,
            reference=trainer.reference.saved,
            depends_on=[config.run.dir / LEDGER_FILE] if dist.get_rank() == 0 else [],
            reference_stage=trainer.reference.state.stage,
            sound=None if snapshot is None else snapshot.sound_step,
        )

    def _export(self) -> None:
        directory, policy = self._config.run.dir, self._trainer.policy
        with Activity("learner", f"exporting the model to {directory / 'model'}"):
            # The adapters first: they are small, and with them and model.path there is all that was trained.
            export_adapters(policy, self._config.model.path, directory / "adapter")
            export(policy, self._tokenizer, directory / "model")
