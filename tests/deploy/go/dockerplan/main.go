// Command dockerplan prints, as JSON, how BuildKit would build a target of a Dockerfile, without building anything.
//
//	dockerplan DOCKERFILE TARGET    what BuildKit warns of, base images, the image's configuration, the build's operations
//	dockerplan context FOLDER       the files of a build context that its .dockerignore lets through
//
// No registry is asked: a base image is taken for an empty one.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
)

const baseImage = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}}`

// noRegistry remembers what it is asked for. BuildKit asks side by side.
type noRegistry struct {
	lock  sync.Mutex
	asked map[string]bool
}

func (r *noRegistry) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.asked[ref] = true
	return ref, "", []byte(baseImage), nil
}

type operation struct {
	Digest digest.Digest   `json:"digest"`
	Op     json.RawMessage `json:"op"`
}

type plan struct {
	Warnings   []string    `json:"warnings"`
	Bases      []string    `json:"bases"`
	Image      any         `json:"image"`
	Operations []operation `json:"operations"`
}

func planOf(dockerfile, target string) (*plan, error) {
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	made := &plan{Warnings: []string{}}
	registry := &noRegistry{asked: map[string]bool{}}
	result, err := dockerfile2llb.Dockerfile2LLB(ctx, text, dockerfile2llb.ConvertOpt{
		Config:       dockerui.Config{Target: target},
		SourceMap:    llb.NewSourceMap(nil, dockerfile, "Dockerfile", text),
		MetaResolver: registry,
		Warn: func(rule, _, _, message string, _ []parser.Range) {
			made.Warnings = append(made.Warnings, rule+": "+message)
		},
	})
	if err != nil {
		return nil, err
	}
	made.Image = result.Image
	made.Bases = slices.Sorted(maps.Keys(registry.asked))
	definition, err := result.State.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, err
	}
	for _, encoded := range definition.Def {
		var op pb.Op
		if err := op.UnmarshalVT(encoded); err != nil {
			return nil, err
		}
		content, err := protojson.Marshal(&op)
		if err != nil {
			return nil, err
		}
		made.Operations = append(made.Operations, operation{digest.FromBytes(encoded), content})
	}
	return made, nil
}

func contextOf(folder string) ([]string, error) {
	ignore, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	defer ignore.Close()
	patterns, err := ignorefile.ReadAll(ignore)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	files := []string{}
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		left, err := matcher.MatchesOrParentMatches(name)
		if err == nil && !left {
			files = append(files, name)
		}
		return err
	})
	return files, err
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: dockerplan DOCKERFILE TARGET | dockerplan context FOLDER")
		os.Exit(2)
	}
	var answer any
	var err error
	if os.Args[1] == "context" {
		answer, err = contextOf(os.Args[2])
	} else {
		answer, err = planOf(os.Args[1], os.Args[2])
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
