# What is done to a cluster. Included by the Makefile.
#
# IMAGE    name of the image. With a registry in it, it is pushed there; without, it is loaded into minikube.
# OVERLAY  which of deploy/overlays is deployed. It says the namespace, for every target here
IMAGE ?= elastic-local
OVERLAY ?= minikube
PROFILE ?= minikube
LOOP_SIZE ?= 10Gi
DISK_GIB ?= 10
KUBECTL ?= kubectl
# What the pods of `make acceptance` run: an image with a shell and the usual tools that the nodes can pull.
POD_IMAGE ?= busybox
# What a released image is built on. It is pinned to the digest that it has when the release is built.
BASE ?= debian:bookworm-slim
# Nodes of GKE whose local SSDs are raw block devices.
GKE_SELECTOR ?= cloud.google.com/gke-local-nvme-ssd=true
# On them: an empty disk. Several: DISKS="/dev/nvme0n1 /dev/nvme1n1".
DISKS ?= --any-disk

OURS := '{range .items[?(@.spec.flexVolume.driver=="volumes.k8s.elastic.co/elastic-local")]}{.metadata.name}{"\n"}{end}$\
	{range .items[?(@.spec.csi.driver=="elastic-local.volumes.k8s.elastic.co")]}{.metadata.name}{"\n"}{end}'
CONTENTS := volumesnapshotcontents.snapshot.storage.k8s.io
OUR_CONTENTS := '{range .items[?(@.spec.driver=="elastic-local.volumes.k8s.elastic.co")]}{.metadata.name}{"\n"}{end}'
# Cleaning Jobs run the same image (components/static-jobs).
MANIFESTS = $(KUBECTL) kustomize deploy/overlays/$(OVERLAY) | sed -e 's|image: elastic-local$$|image: $(IMAGE)|' \
	-e '/name: JOB_CONTAINER_IMAGE$$/ { n; s|value: elastic-local$$|value: $(IMAGE)|; }'

# Where the overlay has the daemon. NAMESPACE= wins, for a cluster that was deployed by other means. Rendered once, and
# only for a target that asks.
NAMESPACE = $(eval NAMESPACE := $(or $(shell $(KUBECTL) kustomize deploy/overlays/$(OVERLAY) 2>/dev/null | \
	awk '/^kind:/ { kind = $$2 } /^  namespace:/ && kind == "DaemonSet" { print $$2; exit }'),elastic-local))$(NAMESPACE)
HERE = $(KUBECTL) --namespace $(NAMESPACE)

.PHONY: docker-build-push release-image deploy delete redeploy redeploy-samples driver-logs provisioner-logs
.PHONY: acceptance bench-cluster cluster-named
.PHONY: minikube-attach-disk minikube-create-vg gke-create-vg

VERSION_OF_IMAGE = --build-arg VERSION="$$(tools/version)" \
	--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)"

docker-build-push: ## build the image IMAGE and push it, or load it into minikube when its name has no registry
	docker build --file deploy/Dockerfile $(VERSION_OF_IMAGE) --tag $(IMAGE) .
	$(if $(findstring /,$(IMAGE)),docker push $(IMAGE),minikube --profile $(PROFILE) image load $(IMAGE))

release-image: ## build IMAGE for amd64 and arm64, on a base pinned by digest, with SBOM and provenance, and push it
	digest=$$(docker buildx imagetools inspect $(BASE) --format '{{.Manifest.Digest}}') && \
	docker buildx build --platform linux/amd64,linux/arm64 --sbom=true --provenance=mode=max \
		--file deploy/Dockerfile --build-arg BASE=$(BASE)@$${digest:?the base has no digest} $(VERSION_OF_IMAGE) \
		--tag $(IMAGE) --push .

deploy: ## deploy OVERLAY (csi, minikube, minikube-loop, gke, ha, static) with IMAGE and wait until it works
	$(MANIFESTS) | $(KUBECTL) apply --filename -
	$(HERE) rollout status --timeout 180s deployment/provisioner
	$(HERE) rollout status --timeout 180s daemonset/daemon

delete: ## take OVERLAY away; refused while there are volumes or snapshots, whose space only the daemons can give back
	@left=$$($(KUBECTL) get persistentvolumes --output jsonpath=$(OURS)) && if [ -n "$$left" ]; then \
		echo "delete the claims of these first: without daemons their PersistentVolumes would stay for ever:" $$left >&2; \
		exit 1; fi
	@known=$$($(KUBECTL) get customresourcedefinitions $(CONTENTS) --ignore-not-found --output name) && \
		left=$$(if [ -n "$$known" ]; then $(KUBECTL) get $(CONTENTS) --output jsonpath=$(OUR_CONTENTS); fi) && \
		if [ -n "$$left" ]; then \
		echo "delete the VolumeSnapshots of these first: without daemons their VolumeSnapshotContents and the data of the" \
			"snapshots would stay for ever (elastic-local doctor --uninstall has the commands):" $$left >&2; \
		exit 1; fi
	$(MANIFESTS) | $(KUBECTL) delete --ignore-not-found --filename -

redeploy: ## start all our pods anew, with the image as it is now
	$(HERE) rollout restart deployment/provisioner daemonset/daemon
	$(HERE) rollout status --timeout 180s deployment/provisioner
	$(HERE) rollout status --timeout 180s daemonset/daemon

redeploy-samples: ## delete the samples, their volumes too, and apply them again
	$(KUBECTL) delete --ignore-not-found --filename deploy/samples
	$(KUBECTL) apply --filename deploy/samples

acceptance: cluster-named tools ## test the cluster of KUBECONFIG=/path, in which elastic-local is installed, in namespaces of its own
	@$(RUN) pytest tests/cluster/acceptance --verbose --maxfail 3 --kubeconfig "$(KUBECONFIG)" --pod-image "$(POD_IMAGE)" \
		$(if $(VOLUME_SOURCE),--volume-source "$(VOLUME_SOURCE)") $(if $(SNAPSHOTS),--snapshots)

bench-cluster: cluster-named tools ## measure the cluster of KUBECONFIG=/path: claims in a namespace of their own, CLAIMS=50 at once
	@$(RUN) python -m tests.bench.cluster --kubeconfig "$(KUBECONFIG)" $(if $(CLAIMS),--claims "$(CLAIMS)") \
		$(if $(STORAGE_CLASS),--storage-class "$(STORAGE_CLASS)") $(if $(METRICS),--metrics "$(METRICS)")

# Not by the environment: it may name a cluster that nobody means just now.
cluster-named:
	$(if $(filter command,$(origin KUBECONFIG)),,$(error which cluster? make $(MAKECMDGOALS) KUBECONFIG=/path/of/its/kubeconfig))
	$(if $(KUBECONFIG),,$(error KUBECONFIG is empty: make $(MAKECMDGOALS) KUBECONFIG=/path/of/its/kubeconfig))

driver-logs: ## follow the logs of the daemons, which serve the driver of each node
	$(HERE) logs --selector app.kubernetes.io/component=daemon --prefix --follow \
		--tail 100 --max-log-requests 100

provisioner-logs: ## follow the logs of the provisioner's replicas
	$(HERE) logs --selector app.kubernetes.io/component=provisioner --prefix --follow --tail 100

minikube-attach-disk: ## give minikube's virtual machine a disk of DISK_GIB
	@PYTHON=$(PYTHON) deploy/minikube/attach-disk $(PROFILE) $(DISK_GIB)

minikube-create-vg: ## make the volume group in minikube: on an empty disk, else on a file of LOOP_SIZE
	@PYTHON=$(PYTHON) IMAGE=$(IMAGE) NAMESPACE=$(NAMESPACE) deploy/minikube/create-vg $(PROFILE) $(LOOP_SIZE)

gke-create-vg: ## make the volume group on the nodes of GKE that GKE_SELECTOR selects, on DISKS
	@SELECTOR=$(GKE_SELECTOR) IMAGE=$(IMAGE) NAMESPACE=$(NAMESPACE) KUBECTL="$(KUBECTL)" deploy/create-vg elastic-local-vg $(DISKS)
