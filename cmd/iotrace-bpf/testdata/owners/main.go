// Owners writes to a device as many cgroups: each has a page of anonymous memory,
// charged to it, and every request that writes it belongs to it.
//
//	owners DEVICE ROUNDS CGROUP...
//
// Page i is written i%5+1 times in each round, 4096 bytes at a time, with
// O_DIRECT. It says "ready" once every page is charged, begins when a line comes
// in, says "done", and ends when standard input does.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

const pageSize = 4096

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "owners:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: owners DEVICE ROUNDS CGROUP...")
	}
	rounds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	dev, err := os.OpenFile(args[0], os.O_WRONLY|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	size, err := dev.Seek(0, 2)
	if err != nil {
		return err
	}
	pages, err := charge(args[2:])
	if err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	if err := write(dev, size/pageSize, pages, rounds); err != nil {
		return err
	}
	fmt.Println("done")
	_, err = in.ReadString('\n')
	if err == nil {
		return fmt.Errorf("one line too many")
	}
	return nil
}

// charge returns a page for each cgroup, touched while this process was in it.
func charge(cgroups []string) ([][]byte, error) {
	pid := []byte(strconv.Itoa(os.Getpid()))
	pages := make([][]byte, len(cgroups))
	for i, dir := range cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), pid, 0); err != nil {
			return nil, err
		}
		page, err := syscall.Mmap(-1, 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			return nil, err
		}
		page[0] = 1
		pages[i] = page
	}
	return pages, nil
}

// write spreads the pages over the device, with a few requests in flight at once.
func write(dev *os.File, slots int64, pages [][]byte, rounds int) error {
	const writers = 8
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for round := range rounds {
				for i := w; i < len(pages); i += writers {
					for n := range i%5 + 1 {
						// Far apart, so that no two requests are merged.
						at := int64(round*7919+i*31+n*17) * 2 % slots
						if _, err := dev.WriteAt(pages[i], at*pageSize); err != nil {
							errs[w] = err
							return
						}
					}
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
