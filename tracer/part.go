package tracer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/iotrace-bpf/iotrace-bpf/bpf"
)

// parts of the programs that count requests when they are issued: what not every host
// needs. The kernel's verifier spends half of its time on them.
type parts struct {
	hops     bool // through stacked devices and file systems that write pages of their own
	journals bool
	xfs      bool // logs of XFS; with journals
}

// without returns the functions that belong to other parts only. They return 0 where
// there is nothing for them to do, and so does a call of a function that was cut out.
func (p parts) without() (functions []string) {
	if !p.hops {
		functions = append(functions, "iot_follow", "iot_walk_extent")
	}
	if !p.journals {
		functions = append(functions, "iot_walk_journal")
	}
	if !p.xfs {
		functions = append(functions, "iot_xfs_owner")
	}
	return functions
}

var allParts = parts{hops: true, journals: true, xfs: true}

// holds tells whether p has all parts of q.
func (p parts) holds(q parts) bool { return p == p.and(q) }

func (p parts) and(q parts) parts {
	return parts{hops: p.hops || q.hops, journals: p.journals || q.journals, xfs: p.xfs || q.xfs}
}

// cut takes functions, and those that only they call, out of a program. Calls of them
// return 0.
func cut(program asm.Instructions, functions []string) asm.Instructions {
	if len(functions) == 0 {
		return program
	}
	if !slices.ContainsFunc(program, func(ins asm.Instruction) bool {
		return ins.IsFunctionCall() && slices.Contains(functions, ins.Reference())
	}) {
		return program
	}
	bodies := map[string]asm.Instructions{}
	for from := 0; from < len(program); {
		to := from + 1
		for to < len(program) && btf.FuncMetadata(&program[to]) == nil {
			to++
		}
		bodies[btf.FuncMetadata(&program[from]).Name], from = program[from:to], to
	}
	kept := make(asm.Instructions, 0, len(program))
	order := []string{btf.FuncMetadata(&program[0]).Name}
	for i := 0; i < len(order); i++ {
		for _, ins := range bodies[order[i]] {
			to := ins.Reference()
			switch {
			case ins.IsFunctionCall() && slices.Contains(functions, to):
				ins = asm.Mov.Imm(asm.R0, 0).WithSymbol(ins.Symbol()).WithSource(ins.Source())
			case (ins.IsFunctionCall() || ins.IsLoadOfFunctionPointer()) && !slices.Contains(order, to):
				order = append(order, to)
			}
			kept = append(kept, ins)
		}
	}
	return kept
}

// withoutFiles returns the functions that only --by file needs.
func (o *Options) withoutFiles() (functions []string) {
	if o.ByFile {
		return nil
	}
	functions = []string{"iot_file_of", "iot_nfs_file", "iot_fuse_file"}
	if !o.ByMount {
		functions = append(functions, "iot_walk_place")
	}
	return functions
}

// issuers loads the programs that count requests when they are issued, with the parts
// that are needed, and exchanges them when more are.
type issuers struct {
	core  *core
	block *object
	have  parts

	loopNotes *ebpf.MapSpec // of a map that is made when there is a loop device
}

// loadBlock loads the block source with the parts that are needed now. Where the kernel
// cannot exchange its programs later (on arm64 before 6.0 programs with functions make no
// tail calls), it loads all parts.
func (c *loader) loadBlock(p parts, signals []signal) (*issuers, error) {
	load := func(p parts) (*issuers, error) {
		spec, err := c.blockSpec(p, p != allParts, signals)
		if err != nil {
			return nil, err
		}
		notes := spec.Maps[bpf.BlockMapLoopNotes].InnerMap.Copy()
		spec.Maps[bpf.BlockMapJournalNotes].InnerMap.MaxEntries = 1 // a template
		o, err := c.load(spec, signals, ebpf.ProgramOptions{})
		return &issuers{core: c.core, block: o, have: p, loopNotes: notes}, err
	}
	i, err := load(p)
	if err != nil && p != allParts {
		c.log.Debug("the kernel refused programs that may grow", "error", err)
		i, err = load(allParts)
	}
	return i, err
}

// blockSpec reads the block object, with the programs of signals, and sets what all its
// programs have to know.
func (c *loader) blockSpec(p parts, grow bool, signals []signal) (*ebpf.CollectionSpec, error) {
	spec, err := c.read(bpf.BlockObject(), signals)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]bool{
		bpf.BlockVarRqIsSecondArg:  c.tracepointArgs("block_rq_issue") == 2,
		bpf.BlockVarBioIsSecondArg: c.tracepointArgs("block_bio_queue") == 2,
		bpf.BlockVarHasRedundant:   c.preempts(),
		bpf.BlockVarMayGrow:        grow,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("setting %q: %w", name, err)
		}
	}
	if c.allocates() { // 8 KiB for each XFS, of which few hosts have many
		spec.Maps[bpf.BlockMapXfsLogs].Flags |= unix.BPF_F_NO_PREALLOC
	}
	for _, name := range []string{bpf.BlockProgIotRqIssueBtf, bpf.BlockProgIotRqIssueRedundantBtf} {
		if program := spec.Programs[name]; program != nil { // their fallbacks are rarely loaded, and then with all parts
			program.Instructions = cut(program.Instructions, p.without())
		}
	}
	return spec, nil
}

// slot is where the program that runs instead of an attached one is put.
func slot(program string) (m string, key uint32, ok bool) {
	switch program {
	case bpf.BlockProgIotRqIssue:
		return bpf.BlockMapSuccessors, 0, true
	case bpf.BlockProgIotRqIssueRedundant:
		return bpf.BlockMapSuccessors, 1, true
	case bpf.BlockProgIotRqIssueBtf:
		return bpf.BlockMapSuccessorsBtf, 0, true
	case bpf.BlockProgIotRqIssueRedundantBtf:
		return bpf.BlockMapSuccessorsBtf, 1, true
	}
	return "", 0, false
}

// need makes sure that the programs have these parts. What it loads counts from the
// moment on at which it returns.
func (i *issuers) need(p parts) error {
	if i.have.holds(p) {
		return nil
	}
	ld, err := i.core.loader()
	if err != nil {
		return err
	}
	p = p.and(i.have)
	var signals []signal
	for _, a := range i.block.hooks {
		if _, _, ok := slot(a.hook.program); ok {
			signals = append(signals, signal{hooks: []hook{a.hook}})
		}
	}
	spec, err := ld.blockSpec(p, false, signals)
	if err != nil {
		return err
	}
	programs, maps, err := ld.makeMaps(i.block, spec)
	if err != nil {
		return err
	}
	o := &object{maps: maps} // handles of the maps of the block source
	defer o.Close()
	for _, a := range i.block.hooks {
		name, key, ok := slot(a.hook.program)
		if !ok {
			continue
		}
		program, err := ld.loadProgram(spec, programs, a.hook, maps, ebpf.ProgramOptions{})
		if err != nil {
			return fmt.Errorf("loading more of %s: %w", a.hook, err)
		}
		err = maps[name].Update(key, program, ebpf.UpdateAny) // which keeps the program
		if err := errors.Join(err, program.Close()); err != nil {
			return fmt.Errorf("exchanging %s: %w", a.hook, err)
		}
	}
	i.have = p
	return nil
}
