"""The published format of attribution graphs, written down once more: types, and keys that must be there."""

STRING, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def record(required, **optional):
    """Schema of an object: keys that must be there, and keys that may be, with their types."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def listing(items):
    return {"type": "array", "items": items}


# The types and required keys of Neuronpedia's schema of attribution graphs (draft 7), and where circuit-tracer's own
# data model is stricter (feature is a number, layer a string, more keys required), those of circuit-tracer.
SCHEMA = record(
    {
        "metadata": record(
            {
                "slug": STRING,
                "scan": STRING,
                "transcoder_list": listing(STRING),
                "prompt_tokens": listing(STRING),
                "prompt": STRING,
            },
            feature_details={"type": "object"},
            node_threshold=NUMBER,
            schema_version={"const": 1},
            info=record(
                {},
                description=STRING,
                creator_name=STRING,
                creator_url=STRING,
                source_urls=listing(STRING),
                generator=record({}, name=STRING, version=STRING, url=STRING, email=STRING),
                create_time_ms=NUMBER,
            ),
            generation_settings=record({}, max_n_logits=INTEGER, batch_size=INTEGER, max_feature_nodes=INTEGER),
            pruning_settings=record({}, node_threshold=NUMBER, edge_threshold=NUMBER),
        ),
        "qParams": record(
            {
                "pinnedIds": listing(STRING),
                "supernodes": listing(listing(STRING)),
                "linkType": STRING,
                "clickedId": STRING,
                "sg_pos": STRING,
            }
        ),
        "nodes": listing(
            record(
                {
                    "node_id": STRING,
                    "feature": INTEGER,
                    "layer": STRING,
                    "ctx_idx": INTEGER,
                    "feature_type": STRING,
                    "jsNodeId": STRING,
                    "clerp": STRING,
                },
                token_prob=NUMBER,
                is_target_logit={"type": "boolean"},
                run_idx=INTEGER,
                reverse_ctx_idx=INTEGER,
                influence={"type": ["number", "null"]},
                activation={"type": ["number", "null"]},
            )
        ),
        "links": listing(record({"source": STRING, "target": STRING, "weight": NUMBER}, removal=NUMBER)),
    }
)

# Details of a feature: what circuit-tracer's page reads, and the keys that Neuronpedia's type of them requires.
DETAIL = record(
    {
        "transcoder_id": STRING,
        "index": INTEGER,
        "examples_quantiles": listing(
            record(
                {
                    "quantile_name": STRING,
                    "examples": listing(
                        record(
                            {
                                "tokens": listing(STRING),
                                "tokens_acts_list": listing(NUMBER),
                                "train_token_ind": INTEGER,
                                "is_repeated_datapoint": {"type": "boolean"},
                            }
                        )
                    ),
                }
            )
        ),
        "top_logits": listing(STRING),
        "bottom_logits": listing(STRING),
        "activation_frequency": NUMBER,
    },
    act_min=NUMBER,
    act_max=NUMBER,
    quantile_values={**listing(NUMBER), "minItems": 100, "maxItems": 100},
    histogram=listing(NUMBER),
)
