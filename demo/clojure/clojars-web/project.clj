(defproject clojars-web "1.0.0"
  :description "A small repository of jars: pages over HTTP, uploads by scp through nailgun"
  :min-lein-version "2.9.0"
  ;; Everything comes from Debian's packages: the versions are Debian 12's, and nothing is asked of the network. Debian
  ;; gives to what it packages as a snapshot the version "debian" as well, which needs no metadata.
  :local-repo "/usr/share/maven-repo"
  :offline? true
  :dependencies [[org.clojure/clojure "1.11.1"]
                 [ring/ring-core "1.8.2"]
                 [ring/ring-jetty-adapter "1.8.2"]
                 [compojure "1.6.0"]
                 [hiccup "1.0.5"]
                 [com.martiansoftware/nailgun-server "debian"]]
  :main clojars.main
  :profiles {:uberjar {:aot :all}})
