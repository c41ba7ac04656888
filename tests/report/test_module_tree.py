from __future__ import annotations

from frostline.report.module_tree import DEEPEST, HeldEntry, Leaf, MovedEntry, Node, grow_tree


def held(path: str, kind: str = "parameter", *, equal: bool = True) -> HeldEntry:
    return HeldEntry(path, kind, "weight", "aa", "aa" if equal else "bb", equal)


def moved(path: str, size: float | None = 0.5) -> MovedEntry:
    return MovedEntry(path, "parameter", "weight", size, size)


def leaves(node: Node) -> list[Leaf]:
    return [*node.leaves, *(leaf for child in node.children for leaf in leaves(child))]


def test_every_node_counts_what_is_under_it() -> None:
    tree = grow_tree([held("a.b.w"), held("a.b.v", equal=False), held("a.w")], [moved("c.w"), moved("c.v")])
    counts = {node.path: (node.held, node.moved, node.trained) for node in [tree, *tree.children]}
    assert counts == {"": (2, 1, 2), "a": (2, 1, 0), "c": (0, 0, 2)}
    assert tree.total == 5
    assert [leaf.name for leaf in tree.children[0].children[0].leaves] == ["w", "v"]


def test_the_order_of_the_model_is_kept() -> None:
    tree = grow_tree([held("z.w"), held("a.w"), held("z.v")])
    assert [node.name for node in tree.children] == ["z", "a"]


def test_entries_of_the_model_itself_lie_at_the_root() -> None:
    tree = grow_tree([held("training", "mode"), held("requires_grad", "requires_grad")])
    assert [leaf.name for leaf in tree.leaves] == ["training", "requires_grad"]
    assert tree.children == ()


def test_a_flag_of_a_parameter_makes_no_module_of_it() -> None:
    tree = grow_tree([held("bn.weight"), held("bn.weight.requires_grad", "requires_grad")])
    (bn,) = tree.children
    assert [leaf.name for leaf in bn.leaves] == ["weight", "weight.requires_grad"]
    assert bn.children == ()


def test_a_moved_entry_has_its_size_once_and_outweighs_the_flag() -> None:
    tree = grow_tree([held("bn.mean"), held("bn.var", equal=False)], moved=[moved("bn.mean", 0.25), moved("lost.w")])
    found = {leaf.path: (leaf.fate, leaf.max_abs) for leaf in leaves(tree)}
    assert found == {"bn.mean": ("moved", 0.25), "bn.var": ("moved", None), "lost.w": ("moved", 0.5)}
    assert (tree.held, tree.moved) == (0, 3)


def test_very_deep_paths_stop_nesting_but_lose_nothing() -> None:
    paths = [".".join(["m"] * 2_000 + ["w"]), ".".join(["m"] * 2_000 + ["v"])]
    tree = grow_tree([held(path) for path in paths])
    depth, node = 0, tree
    while node.children:
        depth, node = depth + 1, node.children[0]
    assert depth == DEEPEST
    assert [leaf.path for leaf in leaves(tree)] == paths
    assert tree.held == 2


def test_nothing_grows_an_empty_tree() -> None:
    assert grow_tree([]) == Node("", "", (), (), 0, 0, 0)


def test_empty_parts_of_a_path_stay_apart() -> None:
    tree = grow_tree([held(".w"), held("a..w"), held("")])
    assert tree.held == 3
    assert sorted(leaf.path for leaf in leaves(tree)) == ["", ".w", "a..w"]
