"""One rollout in the shop."""

from __future__ import annotations

from typing import Literal

from scgrpo.tasks.base import Verdict
from scgrpo.tasks.environment import Step
from scgrpo.tasks.webshop.goals import Goal
from scgrpo.tasks.webshop.pages import ObservationMode
from scgrpo.tasks.webshop.prompts import observation, parse_action
from scgrpo.tasks.webshop.shop import Shop, Visit

RewardKind = Literal["score", "success"]


class WebShopEnvironment:
    """A visit that answers what a model writes.

    An answer without an action, or with one that the page does not allow, changes nothing: the same page is shown
    again, and it counts. The visit is done with a purchase, or after `max_steps` answers.

    Args:
        reward: what the verdict's score is: the reward, or whether it is 1.
        nouns: name of the extractor, for the verdict's detail.

    Attributes:
        num_steps: answers so far.
        num_unparsed: those without an action.
    """

    def __init__(
        self, shop: Shop, goal: Goal, mode: ObservationMode, max_steps: int, reward: RewardKind, nouns: str
    ) -> None:
        self.visit = Visit(shop, goal)
        self._mode, self._max_steps, self._reward, self._nouns = mode, max_steps, reward, nouns
        self.num_steps = self.num_unparsed = 0

    def step(self, action: str) -> Step:
        self.num_steps += 1
        wanted = parse_action(action)
        if wanted is None:
            self.num_unparsed += 1
        else:
            self.visit.act(wanted)
        done = self.visit.reward is not None or self.num_steps >= self._max_steps
        return Step(observation(self.visit.page, sorted(self.visit.visited), self._mode), done)

    @property
    def num_invalid(self) -> int:
        """Answers that changed nothing."""
        return self.num_unparsed + self.visit.num_ignored

    def verdict(self) -> Verdict:
        """The reward of the purchase; 0 as long as nothing is bought."""
        counts = f"{self.num_steps} actions, {self.num_invalid} of them invalid"
        reward, product = self.visit.reward, self.visit.bought
        if reward is None or product is None:
            return Verdict(0.0, detail=f"nothing bought; {counts}")
        score = float(reward.total == 1) if self._reward == "success" else reward.total
        detail = (
            f"bought {product.asin} for a reward of {reward.total:.3g} ({reward}; nouns: {self._nouns}); {counts}"
        )
        return Verdict(score, detail=detail)
