#!/usr/bin/env python3
"""Makes the schemas in this folder from their sources, with everything left out that the tests do not use.

    make_schemas.py compose  compose-spec/schema/compose-spec.json
    make_schemas.py kubernetes  _definitions.json      of a strict folder of the PyPI package kubernetes-validate
    make_schemas.py keda  charts/keda/templates/crds/crd-scaledobjects.yaml

Needs PyYAML for the last one. README.md says which versions the files here are made from.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
PREFIX = "io.k8s.api."
ROOTS = [
    "core.v1.Namespace",
    "core.v1.Service",
    "core.v1.ConfigMap",
    "core.v1.Secret",
    "apps.v1.StatefulSet",
    "apps.v1.Deployment",
    "autoscaling.v2.HorizontalPodAutoscaler",
    "networking.v1.NetworkPolicy",
    "policy.v1.PodDisruptionBudget",
]
# What people read, and what belongs to a server's answer.
LEFT_OUT = {"description", "x-kubernetes-group-version-kind", "deprecated"}


def without_words(value, properties=False):
    """`value` without descriptions; names of properties are kept, whatever they are."""
    if isinstance(value, dict):
        return {
            key: without_words(inner, key in ("properties", "definitions", "$defs", "patternProperties"))
            for key, inner in value.items()
            if properties or key not in LEFT_OUT
        }
    if isinstance(value, list):
        return [without_words(inner) for inner in value]
    return value


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def local(value):
    """References to the file itself."""
    if isinstance(value, dict):
        return {k: "#/" + v.split("#/")[1] if k == "$ref" else local(v) for k, v in value.items()}
    return [local(inner) for inner in value] if isinstance(value, list) else value


def kubernetes(source):
    definitions = json.loads(source)["$defs"]
    kept, wanted = {}, [PREFIX + root for root in ROOTS]
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = local(without_words(definitions[name]))
            kept[name].get("properties", {}).pop("status", None)
            wanted += references(kept[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": dict(sorted(kept.items()))}


def strict(schema):
    """As the server with strict field validation: no field that the schema does not name."""
    if isinstance(schema, dict):
        schema = {key: strict(inner) for key, inner in schema.items()}
        if "properties" in schema and schema.get("type") == "object" and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    elif isinstance(schema, list):
        schema = [strict(inner) for inner in schema]
    return schema


def keda(source):
    import yaml

    text = "\n".join(line for line in source.splitlines() if "{{" not in line)
    version = yaml.safe_load(text)["spec"]["versions"][0]
    schema = without_words(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    schema["properties"]["metadata"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **strict(schema)}


def main():
    what, path = sys.argv[1:]
    source = pathlib.Path(path).read_text()
    makers = {"compose": lambda s: without_words(json.loads(s)), "kubernetes": kubernetes, "keda": keda}
    text = json.dumps(makers[what](source), separators=(",", ":"))
    (HERE / f"{what}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
