"""The schema that a model is shown of a tool: everything written out, in what the formats can render."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.rollout import tool_schema


def test_a_schema_is_shown_without_references_titles_and_what_formats_cannot_render():
    given_schema = {
        "title": "T",
        "type": "object",
        "$defs": {
            "Node": {
                "type": "object",
                "title": "Node",
                "properties": {"title": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}},
            },
            "a/b": {"const": "x"},
        },
        "properties": {
            "node": {"$ref": "#/$defs/Node", "description": "A node."},
            "maybe": {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}], "default": None},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer", "title": "I"}]},
            "all": {
                "allOf": [{"type": "object", "required": ["p"], "properties": {"p": {}}}, {"properties": {"q": {}}}]
            },
            "away": {"$ref": "http://127.0.0.1:1/schema"},
            "broken": {"$ref": "#/$defs/none"},
        },
        "required": ["node"],
    }
    assert tool_schema.shown(given_schema) == {
        "type": "object",
        "properties": {
            "node": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "next": {}},
                "description": "A node.",
            },
            "maybe": {"type": "string", "enum": ["x"], "default": None, "nullable": True},
            "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
            "all": {"type": "object", "required": ["p"], "properties": {"p": {}, "q": {}}},
            "away": {},
            "broken": {},
        },
        "required": ["node"],
    }
    assert tool_schema.shown({"type": "object"}) == {"type": "object", "properties": {}}


def test_a_schema_that_grows_without_end_is_shown_in_part():
    laughs = {f"l{i}": {"properties": {n: {"$ref": f"#/$defs/l{i + 1}"} for n in "abcdefgh"}} for i in range(20)}
    told = tool_schema.shown({"$defs": laughs, "properties": {"a": {"$ref": "#/$defs/l0"}}})
    assert len(repr(told)) < 100 * tool_schema.MAX_PARTS


SCHEMAS = st.recursive(
    st.one_of(st.booleans(), st.sampled_from(["object", "#/a", "#", None, 3])),
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["type", "$ref", "anyOf", "allOf", "properties", "items", "const", "enum", "a", "required"]
            ),
            part,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(SCHEMAS)
def test_any_schema_is_shown(given_schema):
    """Whatever a server says: it ends, and what is left has no reference where a schema stands."""
    told = tool_schema.shown({"properties": {"one": given_schema}, "a": given_schema})

    def schemas(part):
        if isinstance(part, dict):
            yield part
            for key, value in part.items():
                within = key in ("properties", "patternProperties") and isinstance(value, dict)
                if key not in tool_schema.VALUES:
                    yield from (one for held in (value.values() if within else [value]) for one in schemas(held))
        elif isinstance(part, list):
            yield from (one for held in part for one in schemas(held))

    assert not [one for one in schemas(told) if {"$ref", "anyOf", "allOf", "title"} & one.keys()]
