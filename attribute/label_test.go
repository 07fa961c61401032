package attribute

import "testing"

func TestNameByLabels(t *testing.T) {
	type labels = map[string]string
	tests := []struct {
		name   string
		key    string
		labels labels
		want   naming
	}{
		{"none", "", nil, naming{}},
		{"compose", "", labels{"com.docker.compose.project": "shop", "com.docker.compose.service": "db"},
			naming{project: "shop", rule: RuleCompose, service: "db"}},
		{"stack", "", labels{"com.docker.stack.namespace": "shop", "com.docker.swarm.service.name": "shop_db", "com.docker.swarm.task": ""},
			naming{project: "shop", rule: RuleStack, service: "db"}},
		{"stack before compose", "", labels{"com.docker.stack.namespace": "shop", "com.docker.swarm.service.name": "shop_db", "com.docker.compose.project": "x", "com.docker.compose.service": "y"},
			naming{project: "shop", rule: RuleStack, service: "db"}},
		{"swarm without stack", "", labels{"com.docker.swarm.service.name": "web"},
			naming{project: "web", rule: RuleSwarm, service: "web"}},
		{"own label, compose service", "team", labels{"team": "blue", "iotrace.project": "green", "com.docker.compose.project": "shop", "com.docker.compose.service": "db"},
			naming{project: "blue", rule: RuleLabel, service: "db"}},
		{"built-in label", "team", labels{"iotrace.project": "green", "com.docker.compose.project": "shop"},
			naming{project: "green", rule: RuleLabel}},
		{"empty own label falls through", "team", labels{"team": "", "com.docker.compose.project": "shop"},
			naming{project: "shop", rule: RuleCompose}},
		{"kubernetes", "", labels{"io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.uid": uidP, "io.kubernetes.container.name": "pg", "com.docker.compose.project": "x"},
			naming{project: "prod", rule: RuleKubernetes, service: "pg", pod: "db-0", namespace: "prod", podUID: uidP}},
		{"kubernetes app label", "", labels{"io.kubernetes.pod.namespace": "prod", "io.kubernetes.container.name": "pg", "app.kubernetes.io/name": "postgres"},
			naming{project: "prod", rule: RuleKubernetes, service: "postgres", namespace: "prod"}},
		{"dockershim sandbox", "", labels{"io.kubernetes.pod.name": "db-0", "io.kubernetes.pod.namespace": "prod", "io.kubernetes.container.name": "POD", "io.kubernetes.docker.type": "podsandbox"},
			naming{project: "prod", rule: RuleKubernetes, service: "POD", pod: "db-0", namespace: "prod", sandbox: true}},
		{"coolify before its random compose project", "", labels{"coolify.projectName": "site", "coolify.resourceName": "blog", "com.docker.compose.project": "a8sd7f"},
			naming{project: "site", rule: RuleCoolify, service: "blog"}},
		{"podman-compose", "", labels{"io.podman.compose.project": "shop", "io.podman.compose.service": "db", "PODMAN_SYSTEMD_UNIT": "podman-compose@shop.service"},
			naming{project: "shop", rule: RulePodmanCompose, service: "db", unit: "podman-compose@shop.service"}},
		{"nomad", "", labels{"com.hashicorp.nomad.job_name": "etl", "com.hashicorp.nomad.task_name": "load", "com.hashicorp.nomad.alloc_id": "x"},
			naming{project: "etl", rule: RuleNomad, service: "load"}},
		{"nomad namespace", "", labels{"com.hashicorp.nomad.namespace": "batch", "com.hashicorp.nomad.job_name": "etl"},
			naming{project: "batch", rule: RuleNomad, service: "etl"}},
		{"ecs arn", "", labels{"com.amazonaws.ecs.cluster": "arn:aws:ecs:eu-west-1:1:cluster/prod", "com.amazonaws.ecs.task-definition-family": "api"},
			naming{project: "prod", rule: RuleECS, service: "api"}},
		{"rancher", "", labels{"io.rancher.stack.name": "shop", "io.rancher.stack_service.name": "shop/db"},
			naming{project: "shop", rule: RuleRancher, service: "db"}},
		{"dokku", "", labels{"com.dokku.app-name": "blog", "com.dokku.process-type": "web"},
			naming{project: "blog", rule: RuleDokku, service: "web"}},
		{"gitlab", "", labels{"com.gitlab.gitlab-runner.project.id": "42", "com.gitlab.gitlab-runner.job.id": "7"},
			naming{project: "42", rule: RuleGitLab, service: "7"}},
		{"gitlab, prefix twice", "", labels{"com.gitlab.gitlab-runner.com.gitlab.gitlab-runner.project.id": "42"},
			naming{project: "42", rule: RuleGitLab}},
		{"devcontainer", "", labels{"devcontainer.local_folder": "/home/ann/src/shop/"},
			naming{project: "shop", rule: RuleDevContainer}},
		{"devcontainer on Windows", "", labels{"devcontainer.local_folder": `C:\Users\ann\shop`},
			naming{project: "shop", rule: RuleDevContainer}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := nameByLabels(tt.labels, tt.key); got != tt.want {
				t.Errorf("got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// Every rule outranks all that stand after it.
func TestLabelRulesInOrder(t *testing.T) {
	samples := []map[string]string{
		{"io.kubernetes.pod.namespace": "v0"},
		{"coolify.projectName": "v1"},
		{"com.docker.stack.namespace": "v2"},
		{"com.docker.compose.project": "v3"},
		{"io.podman.compose.project": "v4"},
		{"com.hashicorp.nomad.job_name": "v5"},
		{"com.amazonaws.ecs.cluster": "v6"},
		{"io.rancher.stack.name": "v7"},
		{"com.dokku.app-name": "v8"},
		{"com.gitlab.gitlab-runner.project.id": "v9"},
		{"com.docker.swarm.service.name": "v10"},
		{"devcontainer.local_folder": "/v11"},
	}
	if len(samples) != len(labelRules) {
		t.Fatalf("%d samples for %d rules", len(samples), len(labelRules))
	}
	all := map[string]string{}
	for i := len(samples) - 1; i >= 0; i-- {
		for k, v := range samples[i] {
			all[k] = v
		}
		if got := nameByLabels(all, ""); got.rule != labelRules[i].rule {
			t.Errorf("with rules %d and later: %q named the project, want %q", i, got.rule, labelRules[i].rule)
		}
	}
}
