// Command composecheck loads compose files as Docker Compose does, against the compose specification, and prints the
// project as JSON.
//
//	composecheck [--profile NAME]... FILE...
//
// Without --profile those of COMPOSE_PROFILES are taken, from the environment or the file .env beside the first file.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func load(arguments []string) error {
	var profiles, files []string
	for i := 0; i < len(arguments); i++ {
		if arguments[i] == "--profile" && i+1 < len(arguments) {
			i++
			profiles = append(profiles, arguments[i])
		} else {
			files = append(files, arguments[i])
		}
	}
	options, err := cli.NewProjectOptions(
		files,
		cli.WithOsEnv,
		cli.WithEnvFiles(),
		cli.WithDotEnv,
		cli.WithDefaultProfiles(profiles...),
		cli.WithResolvedPaths(true),
		cli.WithInterpolation(true),
		cli.WithNormalization(true),
		cli.WithConsistency(true),
	)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(project)
}

func main() {
	if err := load(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
