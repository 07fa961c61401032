package prometheus

import (
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	dto "github.com/prometheus/client_model/go"

	"github.com/iotrace-bpf/iotrace-bpf/output"
	"github.com/iotrace-bpf/iotrace-bpf/output/outputtest"
)

// ZabbixItem is an item, a discovery rule or an item prototype of the template.
type ZabbixItem struct {
	Key           string
	Type          string
	Preprocessing []struct {
		Type       string
		Parameters []string
	}
	Master struct{ Key string } `yaml:"master_item"`
}

var (
	patternMetric = regexp.MustCompile(`^(iotrace_[a-z_]+)(?:\{(.*)\})?$`)
	patternLabel  = regexp.MustCompile(`([a-z_]+)=~?"([^"]*)"`)
)

// TestZabbixMetricsExist: a scrape has every metric, label and operation that the Zabbix
// template asks for, and each of its items depends on the one that scrapes.
func TestZabbixMetricsExist(t *testing.T) {
	b, err := os.ReadFile("../../packaging/zabbix/iotrace-bpf.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Export struct {
			Templates []struct {
				Items     []ZabbixItem
				Discovery []struct {
					ZabbixItem `yaml:",inline"`
					Prototypes []ZabbixItem `yaml:"item_prototypes"`
				} `yaml:"discovery_rules"`
			}
		} `yaml:"zabbix_export"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var items []ZabbixItem
	for _, template := range file.Export.Templates {
		items = append(items, template.Items...)
		for _, rule := range template.Discovery {
			items = append(append(items, rule.ZabbixItem), rule.Prototypes...)
		}
	}
	p := servePrometheus(t, Options{})
	iv := outputtest.Cluster(time.Now(), 5)
	iv.Events = []output.Event{{Action: "leaked", VXLAN: &output.VXLAN{}}}
	p.Observe(iv)
	families := p.families(t, "")
	patterns := 0
	for _, item := range items {
		if item.Type == "HTTP_AGENT" {
			continue
		}
		if item.Master.Key != "iotrace.metrics" {
			t.Errorf("%s depends on %q", item.Key, item.Master.Key)
		}
		for _, step := range item.Preprocessing {
			if step.Type != "PROMETHEUS_PATTERN" && step.Type != "PROMETHEUS_TO_JSON" {
				continue
			}
			patterns++
			m := patternMetric.FindStringSubmatch(step.Parameters[0])
			if m == nil || families[m[1]] == nil {
				t.Errorf("%s: no metric %q", item.Key, step.Parameters[0])
				continue
			}
			for _, label := range patternLabel.FindAllStringSubmatch(m[2], -1) {
				if !hasLabel(families[m[1]], label[1], label[2]) {
					t.Errorf("%s: no series has label %s=%q", item.Key, label[1], label[2])
				}
			}
		}
	}
	if patterns < 10 {
		t.Errorf("%d patterns", patterns)
	}
}

// hasLabel tells whether a series has the label, for an operation with this value.
func hasLabel(f *dto.MetricFamily, name, value string) bool {
	return slices.ContainsFunc(f.Metric, func(m *dto.Metric) bool {
		return slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool {
			return l.GetName() == name && (name != "operation" || l.GetValue() == value)
		})
	})
}
