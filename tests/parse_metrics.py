#!/usr/bin/env python3
"""Parses snapshots of /metrics with the parser of Prometheus' own Python client.

Needs: pip install prometheus-client
"""
import sys

from prometheus_client.parser import text_string_to_metric_families


def check(path):
    # An insta snapshot: a header between two lines of dashes, then the text.
    text = open(path, encoding="utf-8").read().split("\n---\n", 1)[1].rstrip("\n") + "\n"
    families = list(text_string_to_metric_families(text))
    assert len(families) == text.count("# TYPE "), f"{path}: families were lost"
    for family in families:
        assert family.type in ("counter", "gauge", "histogram"), f"{path}: {family.name} is {family.type}"
        assert family.documentation and family.samples, f"{path}: {family.name} is empty"
        for sample in family.samples:
            assert "model_name" in sample.labels, f"{path}: {sample}"
            assert sample.value >= 0, f"{path}: {sample}"
    print(f"{path}: {len(families)} families, {sum(len(f.samples) for f in families)} samples")


for snapshot in sys.argv[1:]:
    check(snapshot)
