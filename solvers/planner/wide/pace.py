"""How pricing goes on: what it leaves open each time, how often in turn nothing came of it, and when to leave off."""

from __future__ import annotations

from dataclasses import dataclass, field

PATIENCE, SLOW = 4, 0.9  # pricings stop when what is open is little and so many left this share of it open
MOST_STALLED, MOST_VAIN = 4, 4  # pricings in turn that find neither ways nor better prices; no prices while searching
RISE, MOST_HURRIED = 0.05, 2  # of what is open, what a bound has to rise by in a hurry, or so many in turn end it
STALLED = 1e-6  # of the bound; it rises by less only because loads are rounded


@dataclass(slots=True, kw_only=True)
class Pace:
    """Of one run of pricings; a search takes long, so it has less patience, and so has what is priced again later."""

    is_search: bool
    is_hurried: bool = False
    has_risen: bool = False
    stalled: int = 0
    open_usd_per_hour: list[float] = field(default_factory=list)

    def is_over(self, little_usd_per_hour: float) -> bool:
        """Tell whether nothing came of it too often, or so much stays open of what is little."""
        usd, patience = self.open_usd_per_hour, 3 if self.is_search else PATIENCE
        is_slow = len(usd) > patience and usd[-1] > SLOW * usd[-1 - patience] and usd[-1] <= little_usd_per_hour
        return is_slow or self.stalled >= (
            MOST_HURRIED if self.is_hurried else MOST_VAIN if self.is_search else MOST_STALLED
        )

    def gained(self, value: float, best: float, *, is_new: bool) -> None:
        """Take note of a value, USD per hour, beside the best before, and of whether ways were found."""
        if self.is_hurried:  # ways that turn up are many; a few that raise nothing say that the rest is for later
            has_risen = value > best + RISE * self.open_usd_per_hour[-1]
            self.has_risen = self.has_risen or has_risen
            self.stalled = 0 if has_risen or not self.has_risen else self.stalled + 1
            return
        self.stalled = 0 if is_new or value > best + STALLED * abs(best) else self.stalled + 1

    def begin_again(self) -> None:
        """Forget what was open: it was a part only, which a box had cut out."""
        self.open_usd_per_hour.clear()
