"""How good search is: judged queries, evidence without labels, the quality gate, the benchmark."""
