"""What the two algorithms share of a round: a report by names, and where new tokens go."""

from types import SimpleNamespace

import pytest
import torch

from lupi_trainer.speculative.loops.report import Report
from lupi_trainer.speculative.loops.rounds import Rounds


def test_a_report_is_read_by_names_at_once(monkeypatch):
    names = ("drafted", "accepted", "rejected", "committed", "remaining", "broken", "invalid")
    tensors = {name: torch.tensor([i, 10 + i]) for i, name in enumerate(names)}
    tensors["rejected"] = torch.tensor([True, False])
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or tolist(tensor))
    rows = Report(**tensors).read()
    assert len(reads) == 1 and len(rows) == 2
    for slot, row in enumerate(rows):
        assert {name: getattr(row, name) for name in names} == {name: int(t[slot]) for name, t in tensors.items()}


@pytest.mark.parametrize("eos", [(), (7,), (7, 8)])
def test_tokens_behind_an_eos_are_discarded(eos):
    generator = torch.Generator().manual_seed(0)
    new = torch.randint(5, 9, (200, 4), generator=generator)
    count = torch.randint(0, 5, (200,), generator=generator)
    first = torch.randint(0, 30, (200,), generator=generator)
    rounds = SimpleNamespace(eos=torch.tensor(eos, dtype=torch.long))
    ends, counts, columns = Rounds.cut(rounds, new, count, first)
    for i, tokens in enumerate(new.tolist()):
        kept = tokens[: count[i]]
        places = [j for j, token in enumerate(kept) if token in eos]
        kept = kept[: places[0] + 1] if places else kept
        assert bool(ends[i]) == bool(places) and int(counts[i]) == len(kept)
        assert columns[i].tolist() == [int(first[i]) + j if j < len(kept) else -1 for j in range(4)]
