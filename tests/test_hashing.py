"""What values keep of themselves, a hash or what follows from them, changes nothing and stays in their process."""

from __future__ import annotations

import pickle
from copy import copy
from dataclasses import dataclass, fields, replace

from solvers.derived import Derives, derived
from solvers.engine import EngineConfig, Role
from solvers.fleet import PoolKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree(Derives):
    rings: int


POOL = PoolKey(service="chat/a", role=Role.DECODE, gpu_class="h100", config=EngineConfig(tensor_parallel=4))


def test_equal_keys_are_found_whichever_was_looked_up_first() -> None:
    other = replace(POOL, role=Role.PREFILL)
    twin = replace(other, role=Role.DECODE)
    assert {POOL: 1}[twin] == 1
    assert other not in {POOL: 1}
    assert hash(POOL) == hash(twin) != hash(other)


def test_a_kept_hash_is_not_sent_along() -> None:
    hash(POOL)
    assert "_hash" not in {field.name for field in fields(POOL)}
    for sent in (pickle.loads(pickle.dumps(POOL)), copy(POOL)):
        assert not hasattr(sent, "_hash")
        assert sent == POOL
        assert repr(sent) == repr(POOL)
        assert hash(sent) == hash(POOL)


def test_keys_sort_by_their_fields() -> None:
    small = replace(POOL, config=EngineConfig(tensor_parallel=2))
    hash(small)
    assert sorted([POOL, small]) == [small, POOL]


def test_what_follows_from_a_value_is_worked_out_once_and_not_handed_on() -> None:
    asked: list[Tree] = []

    def height(tree: Tree) -> int:
        asked.append(tree)
        return 2 * tree.rings

    tree = Tree(rings=4)
    assert [derived(tree, height), derived(tree, height)] == [8, 8]
    assert asked == [tree]
    assert derived(replace(tree, rings=5), height) == 10
    assert pickle.loads(pickle.dumps(tree)) == tree == Tree(rings=4)
    assert not hasattr(pickle.loads(pickle.dumps(tree)), "_derived")
