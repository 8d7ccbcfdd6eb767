// Validates custom resources against the schemas of their operators: custom.mjs FILE, a JSON array of manifests.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";

const kinds = { ScaledObject, PodMonitor };
for (const manifest of JSON.parse(readFileSync(process.argv[2]))) {
  const Kind = kinds[manifest.kind];
  new Kind(manifest).validate();
  // These schemas are enforced.
  assert.throws(() => new Kind({ ...manifest, spec: {} }).validate(), manifest.kind);
  console.log(manifest.kind, "fits its schema");
}
