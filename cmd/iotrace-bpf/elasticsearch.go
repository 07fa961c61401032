package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"github.com/iotrace-bpf/iotrace-bpf/output/elastic"
)

// runElasticsearch is "iotrace-bpf elasticsearch" without the word setup.
func runElasticsearch(_ context.Context, args []string, _, _ io.Writer) error {
	if err := bareFlags("elasticsearch").parse(args); err != nil {
		return err
	}
	return usagef("the word setup is missing: iotrace-bpf elasticsearch setup --elasticsearch URL")
}

// runElasticsearchSetup is "iotrace-bpf elasticsearch setup".
func runElasticsearchSetup(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	opt := newOptions()
	f := opt.setupFlags()
	if err := f.parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return usagef("unexpected argument %q", f.Arg(0))
	case opt.printDashboard:
		var useless error
		f.Visit(func(flag *pflag.Flag) {
			if f.given[flag.Name] && flag.Name != "print-dashboard" && flag.Name != "verbose" {
				useless = usagef("--%s does nothing with --print-dashboard", flag.Name)
			}
		})
		if useless != nil {
			return useless
		}
		f.sayWarnings(stderr)
		_, err := stdout.Write(elastic.KibanaDashboard())
		return err
	case len(opt.elasticsearch) == 0:
		return usagef("elasticsearch setup: name the server with --elasticsearch URL")
	case f.Changed("retention-days") && opt.setup.RetentionDays == 0:
		return usagef("%s: must be above 0, or the word forever", f.origin("retention-days"))
	}
	f.sayWarnings(stderr)
	eo, err := opt.elasticsearchOptions(opt.logger(stderr))
	if err != nil {
		return err
	}
	eo.Setup = opt.setup
	if err := elastic.Setup(ctx, eo, stdout); err != nil {
		return fmt.Errorf("setting up Elasticsearch: %w", err)
	}
	return nil
}
