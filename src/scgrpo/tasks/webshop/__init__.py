"""WebShop (Yao et al., 2022, arXiv 2207.01206) in Python: catalogue, search engine, pages, goals and reward.

Read in this order: `task` (what is asked and how it is scored), `environment` (a rollout), `shop` (actions and
pages), `ranking` (the search engine), `reward`. What differs from the original:

1. Prices and their limits are seeded (`goals`).
2. `search[<r>]` and its kin, back doors for debugging, are ordinary searches (`shop`).
3. Nouns of titles come from rules unless spaCy is asked for (`nouns`).
4. No HTML is rendered and parsed again; the text is the same (`pages`).
"""

from scgrpo.tasks.webshop.task import WebShopTask

__all__ = ["WebShopTask"]
