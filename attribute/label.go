package attribute

import (
	"path"
	"strings"
)

// Rules that can name a project, in order of precedence: the first that finds a value
// wins. Its name is kept to explain a surprising row.
const (
	RuleLabel         = "label" // --project-label, then iotrace.project
	RuleKubernetes    = "kubernetes"
	RuleCoolify       = "coolify"
	RuleStack         = "stack"
	RuleCompose       = "compose"
	RulePodmanCompose = "podman-compose"
	RuleNomad         = "nomad"
	RuleECS           = "ecs"
	RuleRancher       = "rancher"
	RuleDokku         = "dokku"
	RuleGitLab        = "gitlab"
	RuleSwarm         = "swarm"
	RuleDevContainer  = "devcontainer"
	RuleParent        = "parent" // the container around it, or the build's engine
	RuleUnit          = "unit"   // systemd unit
	RuleLXD           = "lxd"    // project part of an LXD or Incus instance
)

// naming is what labels say about a container.
type naming struct {
	project, rule, service string

	pod, namespace, podUID string
	sandbox                bool // a pod's pause container
	unit                   string
}

// nameByLabels applies the rules to the labels of a container. projectLabel is the user's
// own label; "" without one.
func nameByLabels(labels map[string]string, projectLabel string) naming {
	n := naming{
		pod:       labels["io.kubernetes.pod.name"],
		namespace: labels["io.kubernetes.pod.namespace"],
		podUID:    labels["io.kubernetes.pod.uid"],
		unit:      labels["PODMAN_SYSTEMD_UNIT"],
	}
	n.sandbox = labels["io.kubernetes.docker.type"] == "podsandbox" ||
		labels["io.cri-containerd.kind"] == "sandbox" ||
		labels["io.kubernetes.cri.container-type"] == "sandbox" ||
		labels["io.kubernetes.cri-o.ContainerType"] == "sandbox" ||
		n.pod != "" && labels["io.kubernetes.container.name"] == "POD"
	for _, rule := range labelRules {
		project, service := rule.name(labels)
		if project != "" && n.project == "" {
			n.project, n.rule = project, rule.rule
		}
		if service != "" && n.service == "" {
			n.service = service
		}
		if n.project != "" && n.service != "" {
			break
		}
	}
	// The user's own label comes before every rule, but does not name the service.
	for _, key := range []string{projectLabel, "iotrace.project"} {
		if v := labels[key]; key != "" && v != "" {
			n.project, n.rule = v, RuleLabel
			break
		}
	}
	return n
}

type labelRule struct {
	rule string
	name func(map[string]string) (project, service string)
}

// labelRules is in order of precedence. Coolify comes before compose because its compose
// projects are random ids.
var labelRules = [...]labelRule{
	{RuleKubernetes, func(l map[string]string) (string, string) {
		namespace := l["io.kubernetes.pod.namespace"]
		if namespace == "" {
			return "", ""
		}
		return namespace, first(l, "app.kubernetes.io/name", "k8s-app", "app", "io.kubernetes.container.name")
	}},
	{RuleCoolify, func(l map[string]string) (string, string) {
		return l["coolify.projectName"], first(l, "coolify.serviceName", "coolify.service.subName", "coolify.resourceName")
	}},
	{RuleStack, func(l map[string]string) (string, string) {
		stack := l["com.docker.stack.namespace"]
		if stack == "" {
			return "", ""
		}
		return stack, strings.TrimPrefix(l["com.docker.swarm.service.name"], stack+"_")
	}},
	{RuleCompose, func(l map[string]string) (string, string) {
		return l["com.docker.compose.project"], l["com.docker.compose.service"]
	}},
	{RulePodmanCompose, func(l map[string]string) (string, string) {
		return l["io.podman.compose.project"], l["io.podman.compose.service"]
	}},
	{RuleNomad, func(l map[string]string) (string, string) {
		const p = "com.hashicorp.nomad."
		job := l[p+"job_name"]
		if ns := l[p+"namespace"]; ns != "" {
			return ns, first(l, p+"job_name", p+"task_group_name", p+"task_name")
		}
		return job, first(l, p+"task_group_name", p+"task_name")
	}},
	{RuleECS, func(l map[string]string) (string, string) {
		const p = "com.amazonaws.ecs."
		if cluster := l[p+"cluster"]; cluster != "" {
			// The cluster is a name or an ARN that ends in one.
			return cluster[strings.LastIndexByte(cluster, '/')+1:], first(l, p+"task-definition-family", p+"container-name")
		}
		return l[p+"task-definition-family"], l[p+"container-name"]
	}},
	{RuleRancher, func(l map[string]string) (string, string) {
		_, service, _ := strings.Cut(first(l, "io.rancher.stack_service.name", "io.rancher.project_service.name"), "/")
		return first(l, "io.rancher.stack.name", "io.rancher.project.name"), service
	}},
	{RuleDokku, func(l map[string]string) (string, string) {
		return l["com.dokku.app-name"], l["com.dokku.process-type"]
	}},
	{RuleGitLab, func(l map[string]string) (string, string) {
		// Some versions of the runner write the prefix twice.
		const p = "com.gitlab.gitlab-runner."
		return first(l, p+"project.id", p+p+"project.id"), first(l, p+"job.id", p+p+"job.id")
	}},
	{RuleSwarm, func(l map[string]string) (string, string) {
		service := l["com.docker.swarm.service.name"]
		return service, service
	}},
	{RuleDevContainer, func(l map[string]string) (string, string) {
		folder := strings.TrimRight(strings.ReplaceAll(l["devcontainer.local_folder"], `\`, "/"), "/")
		if folder == "" {
			return "", ""
		}
		return path.Base(folder), ""
	}},
}

func first(labels map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return ""
}
