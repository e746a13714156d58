// What `drillyard conformance` has client-go do: every operation of its raw and of its transactional interface against
// a running cluster, over the BatchCommands streams that it uses by itself.
//
// usage: client-go-conformance raw|txn|version PD_ENDPOINT,...
//
// Each check is told by one line of JSON: its name, whether it passed, and why not. The exit code is 0 whatever the
// checks found; a cluster that cannot be connected to is a check that failed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/pingcap/log"
	"github.com/tikv/client-go/v2/config"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/kv"
	"github.com/tikv/client-go/v2/rawkv"
	"github.com/tikv/client-go/v2/txnkv"
	"github.com/tikv/client-go/v2/txnkv/transaction"
	"go.uber.org/zap"
)

const patience = 10 * time.Second
const module = "github.com/tikv/client-go/v2"

type check struct {
	Check  string `json:"check"`
	Passed bool   `json:"passed"`
	Why    string `json:"why,omitempty"`
}

// tell runs one check within its time and writes its line.
func tell(name string, run func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if fault := recover(); fault != nil {
				done <- fmt.Errorf("panic: %v", fault)
			}
		}()
		done <- run(ctx)
	}()
	told := check{Check: name, Passed: true}
	select {
	case err := <-done:
		if err != nil {
			told.Passed, told.Why = false, err.Error()
		}
	case <-time.After(patience + time.Second):
		told.Passed, told.Why = false, "no end within "+patience.String()
	}
	line, _ := json.Marshal(told)
	fmt.Println(string(line))
}

func unlike(got, wanted any) error {
	if g, w := fmt.Sprintf("%q", got), fmt.Sprintf("%q", wanted); g != w {
		return fmt.Errorf("got %s, wanted %s", g, w)
	}
	return nil
}

func keys(prefix string, count int) [][]byte {
	made := make([][]byte, count)
	for i := range made {
		made[i] = []byte(fmt.Sprintf("%s%03d", prefix, i))
	}
	return made
}

func main() {
	quiet, _, _ := log.InitLogger(&log.Config{Level: "fatal"})
	log.ReplaceGlobals(quiet, &log.ZapProperties{Level: zap.NewAtomicLevel()})
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println(version())
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: client-go-conformance raw|txn|version PD_ENDPOINT,...")
		os.Exit(2)
	}
	endpoints := strings.Split(os.Args[2], ",")
	switch os.Args[1] {
	case "raw":
		raw(endpoints)
	case "txn":
		txn(endpoints)
	default:
		fmt.Fprintln(os.Stderr, "raw, txn or version is wanted")
		os.Exit(2)
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, one := range info.Deps {
			if one.Path == module {
				return one.Version
			}
		}
	}
	return "unknown"
}

func raw(endpoints []string) {
	var client *rawkv.Client
	tell("connect", func(ctx context.Context) (err error) {
		client, err = rawkv.NewClient(ctx, endpoints, config.DefaultConfig().Security)
		return err
	})
	if client == nil {
		return
	}
	key, value := []byte("go-raw-one"), []byte("value")
	tell("put, get, delete", func(ctx context.Context) error {
		if err := client.Put(ctx, key, value); err != nil {
			return err
		}
		got, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		if err := unlike(got, value); err != nil {
			return err
		}
		if err := client.Delete(ctx, key); err != nil {
			return err
		}
		if got, err = client.Get(ctx, key); err != nil {
			return err
		}
		return unlike(got, []byte(nil))
	})
	many := keys("go-raw-", 300)
	tell("batch put and batch get", func(ctx context.Context) error {
		if err := client.BatchPut(ctx, many, many); err != nil {
			return err
		}
		got, err := client.BatchGet(ctx, append(many[:2:2], []byte("go-raw-none")))
		if err != nil {
			return err
		}
		return unlike(got, [][]byte{many[0], many[1], nil})
	})
	tell("scan and reverse scan", func(ctx context.Context) error {
		got, values, err := client.Scan(ctx, many[10], many[20], 5)
		if err != nil {
			return err
		}
		if err := errors.Join(unlike(got, many[10:15]), unlike(values, many[10:15])); err != nil {
			return err
		}
		if got, _, err = client.Scan(ctx, many[0], []byte("go-raw-~"), 1000, rawkv.ScanKeyOnly()); err != nil {
			return err
		}
		if err := unlike(got, many); err != nil {
			return err
		}
		if got, _, err = client.ReverseScan(ctx, many[20], many[10], 2); err != nil {
			return err
		}
		return unlike(got, [][]byte{many[19], many[18]})
	})
	tell("batch delete and delete range", func(ctx context.Context) error {
		if err := client.BatchDelete(ctx, many[:100]); err != nil {
			return err
		}
		if err := client.DeleteRange(ctx, many[100], many[298]); err != nil {
			return err
		}
		got, _, err := client.Scan(ctx, many[0], []byte("go-raw-~"), 1000)
		if err != nil {
			return err
		}
		return unlike(got, many[298:])
	})
	tell("compare and swap", func(ctx context.Context) error {
		atomic, err := rawkv.NewClient(ctx, endpoints, config.DefaultConfig().Security)
		if err != nil {
			return err
		}
		defer atomic.Close()
		atomic.SetAtomicForCAS(true)
		swap := []byte("go-raw-swap")
		if err := atomic.Delete(ctx, swap); err != nil {
			return err
		}
		if _, swapped, err := atomic.CompareAndSwap(ctx, swap, nil, []byte("1")); err != nil || !swapped {
			return fmt.Errorf("the first was not swapped in: %v", err)
		}
		before, swapped, err := atomic.CompareAndSwap(ctx, swap, []byte("x"), []byte("2"))
		if err != nil || swapped {
			return fmt.Errorf("another value was taken for it: %v", err)
		}
		return unlike(before, []byte("1"))
	})
	tell("checksum", func(ctx context.Context) error {
		sum, err := client.Checksum(ctx, many[298], []byte("go-raw-3"))
		if err != nil {
			return err
		}
		return unlike(fmt.Sprint(sum.TotalKvs, sum.TotalBytes, sum.Crc64Xor != 0), "2 40 true")
	})
	tell("a time to live is refused where it is not enabled", func(ctx context.Context) error {
		if err := client.PutWithTTL(ctx, key, value, 100); err == nil {
			return errors.New("it was taken")
		}
		return nil
	})
	tell("100 writers at once over the streams", func(ctx context.Context) error {
		var group sync.WaitGroup
		failed := make([]error, 100)
		for number := range failed {
			group.Add(1)
			go func(number int) {
				defer group.Done()
				own := []byte(fmt.Sprintf("go-raw-many-%d", number))
				for round := 0; round < 5 && failed[number] == nil; round++ {
					said := []byte(fmt.Sprint(round))
					if failed[number] = client.Put(ctx, own, said); failed[number] == nil {
						got, err := client.Get(ctx, own)
						failed[number] = errors.Join(err, unlike(got, said))
					}
				}
			}(number)
		}
		group.Wait()
		return errors.Join(failed...)
	})
}

func txn(endpoints []string) {
	var client *txnkv.Client
	tell("connect", func(context.Context) (err error) {
		client, err = txnkv.NewClient(endpoints)
		return err
	})
	if client == nil {
		return
	}
	tell("timestamps grow", func(ctx context.Context) error {
		one, err := client.GetTimestamp(ctx)
		if err != nil {
			return err
		}
		next, err := client.GetTimestamp(ctx)
		if err == nil && next <= one {
			return fmt.Errorf("%d after %d", next, one)
		}
		return err
	})
	many := keys("go-txn-", 30)
	for _, pessimistic := range []bool{false, true} {
		kind := map[bool]string{false: "optimistic", true: "pessimistic"}[pessimistic]
		tell(kind+" commit", func(ctx context.Context) error { return commit(ctx, client, many, kind, pessimistic) })
		tell(kind+" conflict", func(ctx context.Context) error { return conflict(ctx, client, pessimistic) })
	}
	tell("scan both ways in a snapshot", func(ctx context.Context) error { return scan(client, many) })
	tell("a snapshot does not move", func(ctx context.Context) error { return snapshot(ctx, client, many[0]) })
	tell("rollback leaves nothing", func(ctx context.Context) error { return rollback(ctx, client) })
	tell("deletes are committed", func(ctx context.Context) error { return remove(ctx, client, many[:5]) })
	tell("asynchronous commit asked for", func(ctx context.Context) error {
		return write(ctx, client, keys("go-async-", 3), func(one *transaction.KVTxn) { one.SetEnableAsyncCommit(true) })
	})
	tell("commit in one phase asked for", func(ctx context.Context) error {
		return write(ctx, client, keys("go-1pc-", 2), func(one *transaction.KVTxn) { one.SetEnable1PC(true) })
	})
	tell("a lock that is waited for", func(ctx context.Context) error { return waited(ctx, client) })
	tell("a deadlock is found", func(ctx context.Context) error { return deadlock(ctx, client) })
	tell("locks of a transaction that was left are resolved", func(ctx context.Context) error { return left(ctx, client) })
}

func write(ctx context.Context, client *txnkv.Client, many [][]byte, adjust func(*transaction.KVTxn)) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	adjust(one)
	for _, key := range many {
		if err := one.Set(key, key); err != nil {
			return err
		}
	}
	if err := one.Commit(ctx); err != nil {
		return err
	}
	return reads(ctx, client, many)
}

func reads(ctx context.Context, client *txnkv.Client, many [][]byte) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	defer one.Rollback()
	got, err := one.BatchGet(ctx, many)
	if err != nil {
		return err
	}
	for _, key := range many {
		if !bytes.Equal(got[string(key)], key) {
			return fmt.Errorf("%q is %q", key, got[string(key)])
		}
	}
	return nil
}

func lock(ctx context.Context, one *transaction.KVTxn, wait int64, many ...[]byte) error {
	return one.LockKeysWithWaitTime(ctx, wait, many...)
}

func commit(ctx context.Context, client *txnkv.Client, many [][]byte, kind string, pessimistic bool) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	one.SetPessimistic(pessimistic)
	if pessimistic {
		if err := lock(ctx, one, 1000, many...); err != nil {
			return err
		}
	}
	for _, key := range many {
		if err := one.Set(key, []byte(kind)); err != nil {
			return err
		}
	}
	if err := one.Commit(ctx); err != nil {
		return err
	}
	after, err := client.Begin()
	if err != nil {
		return err
	}
	defer after.Rollback()
	got, err := after.Get(ctx, many[7])
	if err != nil {
		return err
	}
	return unlike(got, []byte(kind))
}

// conflict has two transactions write one key; the one that began first must not overwrite the other unseen.
func conflict(ctx context.Context, client *txnkv.Client, pessimistic bool) error {
	key := []byte("go-conflict")
	first, err := client.Begin()
	if err != nil {
		return err
	}
	first.SetPessimistic(pessimistic)
	second, err := client.Begin()
	if err != nil {
		return err
	}
	if err := errors.Join(second.Set(key, []byte("second")), second.Commit(ctx)); err != nil {
		return err
	}
	if pessimistic {
		// Locked as of its begin, which the other's commit is later than.
		err = first.LockKeys(ctx, kv.NewLockCtx(first.StartTS(), 1000, time.Now()), key)
		if rolled := first.Rollback(); err == nil {
			err = rolled
		}
		if err == nil || !tikverr.IsErrWriteConflict(err) {
			return fmt.Errorf("no write conflict but %v", err)
		}
		return nil
	}
	if err := first.Set(key, []byte("first")); err != nil {
		return err
	}
	if err := first.Commit(ctx); err == nil || !tikverr.IsErrWriteConflict(err) {
		return fmt.Errorf("no write conflict but %v", err)
	}
	return nil
}

func scan(client *txnkv.Client, many [][]byte) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	defer one.Rollback()
	var found [][]byte
	iterator, err := one.Iter(many[0], many[10])
	for ; err == nil && iterator.Valid(); err = iterator.Next() {
		found = append(found, append([]byte(nil), iterator.Key()...))
	}
	if err := errors.Join(err, unlike(found, many[:10])); err != nil {
		return err
	}
	iterator, err = one.IterReverse(many[10])
	if err != nil {
		return err
	}
	return unlike(iterator.Key(), many[9])
}

func snapshot(ctx context.Context, client *txnkv.Client, key []byte) error {
	reader, err := client.Begin()
	if err != nil {
		return err
	}
	defer reader.Rollback()
	before, err := reader.Get(ctx, key)
	if err != nil {
		return err
	}
	writer, err := client.Begin()
	if err != nil {
		return err
	}
	if err := errors.Join(writer.Set(key, []byte("later")), writer.Commit(ctx)); err != nil {
		return err
	}
	old := client.GetSnapshot(reader.StartTS())
	after, err := old.Get(ctx, key)
	if err != nil {
		return err
	}
	return unlike(after, before)
}

func rollback(ctx context.Context, client *txnkv.Client) error {
	key := []byte("go-rolled-back")
	one, err := client.Begin()
	if err != nil {
		return err
	}
	one.SetPessimistic(true)
	if err := errors.Join(lock(ctx, one, 1000, key), one.Set(key, key), one.Rollback()); err != nil {
		return err
	}
	return absent(ctx, client, key)
}

func absent(ctx context.Context, client *txnkv.Client, key []byte) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	defer one.Rollback()
	got, err := one.Get(ctx, key)
	if tikverr.IsErrNotFound(err) {
		return nil
	}
	return errors.Join(err, fmt.Errorf("%q is %q", key, got))
}

func remove(ctx context.Context, client *txnkv.Client, many [][]byte) error {
	one, err := client.Begin()
	if err != nil {
		return err
	}
	for _, key := range many {
		if err := one.Delete(key); err != nil {
			return err
		}
	}
	if err := one.Commit(ctx); err != nil {
		return err
	}
	return absent(ctx, client, many[0])
}

func waited(ctx context.Context, client *txnkv.Client) error {
	key := []byte("go-waited")
	holder, err := client.Begin()
	if err != nil {
		return err
	}
	holder.SetPessimistic(true)
	if err := lock(ctx, holder, 1000, key); err != nil {
		return err
	}
	waiter, err := client.Begin()
	if err != nil {
		return err
	}
	waiter.SetPessimistic(true)
	if err := lock(ctx, waiter, kv.LockNoWait, key); !errors.Is(err, tikverr.ErrLockAcquireFailAndNoWaitSet) {
		return fmt.Errorf("without waiting it was answered %v", err)
	}
	if err := lock(ctx, waiter, 200, key); !errors.Is(err, tikverr.ErrLockWaitTimeout) {
		return fmt.Errorf("after 200 ms it was answered %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- lock(ctx, waiter, 5000, key) }()
	time.Sleep(100 * time.Millisecond) // so that it is likely to wait by then
	if err := holder.Rollback(); err != nil {
		return err
	}
	err = <-got
	if tikverr.IsErrWriteConflict(err) { // who was woken asks again, with a newer timestamp
		err = lock(ctx, waiter, 1000, key)
	}
	if err != nil {
		return fmt.Errorf("after it was free it was answered %w", err)
	}
	return waiter.Rollback()
}

func deadlock(ctx context.Context, client *txnkv.Client) error {
	a, b := []byte("go-dead-a"), []byte("go-dead-b")
	one, err := client.Begin()
	if err != nil {
		return err
	}
	two, err := client.Begin()
	if err != nil {
		return err
	}
	one.SetPessimistic(true)
	two.SetPessimistic(true)
	if err := errors.Join(lock(ctx, one, 1000, a), lock(ctx, two, 1000, b)); err != nil {
		return err
	}
	ends := make(chan error, 2)
	for _, each := range []struct {
		txn *transaction.KVTxn
		key []byte
	}{{one, b}, {two, a}} {
		go func(txn *transaction.KVTxn, key []byte) {
			err := lock(ctx, txn, 5000, key)
			if err != nil {
				txn.Rollback()
			}
			ends <- err
		}(each.txn, each.key)
	}
	found := errors.Join(<-ends, <-ends)
	var dead *tikverr.ErrDeadlock
	if !errors.As(found, &dead) {
		return fmt.Errorf("no deadlock was told but %v", found)
	}
	return nil
}

// left writes the locks of a client that dies between prewrite and commit, and reads through them once they are old.
func left(ctx context.Context, client *txnkv.Client) error {
	key, other := []byte("go-left-1"), []byte("go-left-2")
	dying, err := client.Begin()
	if err != nil {
		return err
	}
	if err := errors.Join(dying.Set(key, key), dying.Set(other, other)); err != nil {
		return err
	}
	committer, err := transaction.TxnProbe{KVTxn: dying}.NewCommitter(1)
	if err != nil {
		return err
	}
	committer.SetLockTTL(200)
	if err := committer.PrewriteAllMutations(ctx); err != nil {
		return err
	}
	return absent(ctx, client, other)
}
